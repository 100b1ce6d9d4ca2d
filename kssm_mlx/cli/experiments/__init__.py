"""Commands that ask: experiments, sweeps, interventions."""
