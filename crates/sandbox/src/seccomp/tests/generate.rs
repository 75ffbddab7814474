//! Random configurations and system calls, near the edges where compilers go wrong.

use moat_model::oci::{Seccomp, SeccompArg, SeccompRule};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::seccomp::{ACTIONS, OPERATORS, SeccompData, arch, audit_value, number};

pub(super) const NAMES: [&str; 22] = [
    "read",
    "write",
    "open",
    "clone",
    "clone3",
    "socket",
    "connect",
    "accept",
    "recvmmsg",
    "semop",
    "shmget",
    "msgctl",
    "socketcall",
    "ipc",
    "personality",
    "exit",
    "ioctl",
    "execveat",
    "close_range",
    "no_such_call",
    "setup",
    "restart_syscall",
];

const VALUES: [u64; 16] = [
    0,
    1,
    2,
    3,
    5,
    16,
    0x7e02_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_0000_0000,
    u64::MAX,
];

pub(super) fn value() -> impl Strategy<Value = u64> {
    (select(VALUES.to_vec()), -1i64..2).prop_map(|(value, off)| value.wrapping_add_signed(off))
}

pub(super) fn arg() -> impl Strategy<Value = SeccompArg> {
    (0u32..6, value(), value(), select(OPERATORS.to_vec())).prop_map(|(index, value, value_two, op)| {
        // The first argument is the one that most rules are about.
        let index = index.saturating_sub(3);
        SeccompArg { index, value, value_two, op: op.to_owned() }
    })
}

fn action() -> impl Strategy<Value = String> {
    select(ACTIONS.to_vec()).prop_filter_map("notify has rules of its own", |(name, _)| {
        (name != "SCMP_ACT_NOTIFY").then(|| name.to_owned())
    })
}

fn rule() -> impl Strategy<Value = SeccompRule> {
    let names = vec(select(NAMES.to_vec()).prop_map(str::to_owned), 1..4);
    let errno = proptest::option::of(0u32..200);
    (names, action(), errno, vec(arg(), 0..4)).prop_map(|(names, action, errno_ret, args)| SeccompRule {
        names,
        action,
        errno_ret,
        args,
    })
}

/// Any configuration that compiles.
pub(super) fn config() -> impl Strategy<Value = Seccomp> {
    let arches = vec(select(arch::ARCHES.iter().map(|arch| arch.name.to_owned()).collect::<Vec<_>>()), 0..5);
    (action(), proptest::option::of(0u32..200), arches, vec(rule(), 0..12)).prop_map(
        |(default_action, default_errno_ret, architectures, syscalls)| Seccomp {
            default_action,
            default_errno_ret,
            architectures,
            syscalls,
            ..Seccomp::default()
        },
    )
}

/// A system call of any architecture, near the numbers that rules are about.
fn one() -> impl Strategy<Value = SeccompData> {
    let arches: Vec<&str> = arch::ARCHES.iter().map(|arch| arch.name).collect();
    let near = (select(NAMES.to_vec()), -1i32..2);
    let special = select(vec![-1, 0, 1, 400, 470, 600, 0x4000_0000, 0x7fff_ffff, i32::MIN]);
    let args = vec(prop_oneof![value(), 0u64..6], 6);
    (select(arches), near, special, 0..10, args).prop_map(|(arch, (name, off), special, pick, args)| {
        let listed = number(arch, name).map(|number| (number as i32).wrapping_add(off));
        let nr = if pick == 0 { special } else { listed.unwrap_or(special) };
        let mut data = SeccompData { nr, arch: audit_value(arch).unwrap(), ..SeccompData::default() };
        data.args.copy_from_slice(&args);
        data
    })
}

pub(super) fn data(count: usize) -> impl Strategy<Value = Vec<SeccompData>> {
    vec(one(), count)
}
