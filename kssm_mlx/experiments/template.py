"""The file that `kssm experiment new` writes."""

TEMPLATE = """\
# What this file asks, in one sentence. Run it: kssm experiment run FILE   (--smoke: in seconds)

[about]
question = "Does the coupling inside a population help a K-SSM to predict text?"
minutes = 10                    # on your machine, for whoever runs it next

[run]
recipe = "default"              # a shipped recipe (kssm recipes) or a TOML file
set = { "train.steps" = 200 }   # settings of every run
seeds = [0, 1, 2]               # every arm has one run with each
equal = ["parameters", "tokens", "steps"]   # refused if the arms differ in these
# match = 500000                # give every arm this many parameters by its width

[arms.coupled]
set = { "model.kappa" = 1.0 }

[arms.linear]                   # kappa = 0 is the same model without the coupling
set = { "model.kappa" = 0.0 }

# [grid]                        # every arm once with each combination
# "train.learning_rate" = [1e-3, 2e-3]

# [select]                      # or: every arm with its own best, chosen on a seed that decides nothing else
# grid = { "train.learning_rate" = [1e-3, 2e-3] }
# seed = 100
# set = { "train.steps" = 100 }

[metric]
name = "nats_per_token"         # also bits_per_byte, perplexity, accuracy; of tasks skill, ...
at = "last"                     # the last evaluation, or the "best"
smallest = 0.01                 # a smaller difference is of no interest

[[claim]]                       # fixed before the first run; a later change is shown in every report
says = "Coupled populations predict better than uncoupled ones"
arm = "coupled"
against = "linear"
rule = "lower"                  # lower, higher, different, or equal (within `smallest`)

# [stop]
# looks = [2, 3]                # decide after 2 seeds already, and spend part of the level on that
# minutes = 60                  # no run begins later

[smoke]
seeds = [0, 1]
"""
