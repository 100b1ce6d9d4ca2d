"""Speed, memory and accuracy of everything here beside its peers, on the machine at hand: `kssm bench`.

A case is the same work done by several contenders, who take turns in one process; what counts is the ratio
within a turn. Contenders are built when their case begins and dropped when it ends.
"""
