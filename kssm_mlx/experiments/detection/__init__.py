"""Which check catches what: every published run that failed and every sabotage, against every check.

`make detect` writes docs/results/detection.json and from it docs/detection.md. A row is one thing broken in a
healthy small run, with the checks that should catch it named beforehand; a control is such a run as it is.
"""
