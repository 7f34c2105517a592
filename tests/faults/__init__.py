"""Faults as they happen: signals, kills, full disks, failing calls, files that change; what is left is looked at.

``shim.c`` makes calls fail, ``server`` starts runs that it is preloaded into, ``harness`` has the models and looks at
what a run leaves.
"""
