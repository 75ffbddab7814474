"""Compiles rule sets, one JSON object on a line, with libseccomp; answers with its BPF in hex."""

import json
import sys
import tempfile

import seccomp

ACTIONS = {
    "SCMP_ACT_ALLOW": seccomp.ALLOW,
    "SCMP_ACT_KILL": seccomp.KILL,
    "SCMP_ACT_KILL_THREAD": seccomp.KILL,
    "SCMP_ACT_KILL_PROCESS": seccomp.KILL_PROCESS,
    "SCMP_ACT_LOG": seccomp.LOG,
    "SCMP_ACT_TRAP": seccomp.TRAP,
}
OPERATORS = {
    "SCMP_CMP_EQ": seccomp.EQ,
    "SCMP_CMP_NE": seccomp.NE,
    "SCMP_CMP_LT": seccomp.LT,
    "SCMP_CMP_LE": seccomp.LE,
    "SCMP_CMP_GT": seccomp.GT,
    "SCMP_CMP_GE": seccomp.GE,
    "SCMP_CMP_MASKED_EQ": seccomp.MASKED_EQ,
}
ARCHES = {name: getattr(seccomp.Arch, name.removeprefix("SCMP_ARCH_")) for name in
          ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM",
           "SCMP_ARCH_RISCV64", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_MIPSEL")}


def action(name, errno):
    if name == "SCMP_ACT_ERRNO":
        return seccomp.ERRNO(errno)
    if name == "SCMP_ACT_TRACE":
        return seccomp.TRACE(errno)
    return ACTIONS[name]


def condition(arg):
    operator = OPERATORS[arg["op"]]
    if arg["op"] == "SCMP_CMP_MASKED_EQ":
        return seccomp.Arg(arg["index"], operator, arg["value"], arg.get("valueTwo", 0))
    return seccomp.Arg(arg["index"], operator, arg["value"])


def unknown(name):
    """Whether libseccomp is older than a system call; runc leaves it out, too."""
    try:
        return seccomp.resolve_syscall(seccomp.Arch(), name) == -1
    except (RuntimeError, ValueError):
        return True


def compile_rules(config):
    default = action(config["defaultAction"], config.get("defaultErrnoRet", 1))
    bpf = seccomp.SyscallFilter(defaction=default)
    for name in config.get("architectures", []):
        if not bpf.exist_arch(ARCHES[name]):
            bpf.add_arch(ARCHES[name])
    for rule in config.get("syscalls", []):
        what = action(rule["action"], rule.get("errnoRet", 1))
        if what == default:
            continue
        for name in rule["names"]:
            if unknown(name):
                continue
            args = rule.get("args", [])
            indices = [arg["index"] for arg in args]
            twice = len(set(indices)) < len(indices)
            for group in ([[arg] for arg in args] if twice else [args]):
                try:
                    bpf.add_rule(what, name, *map(condition, group))
                except RuntimeError:
                    return None
    with tempfile.TemporaryFile() as out:
        bpf.export_bpf(out)
        out.seek(0)
        return out.read().hex()


for line in sys.stdin:
    print(json.dumps(compile_rules(json.loads(line))), flush=True)
