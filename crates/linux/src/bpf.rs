//! bpf(2): the device filter of a cgroup v2.
