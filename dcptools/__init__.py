from dcptools.checkpoint import inspect, read
