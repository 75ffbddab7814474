//! The architectures that a filter can name: what the kernel calls them and how their arguments lie.

use super::table::Row;

/// Bits of an AUDIT_ARCH value, `linux/audit.h`.
const BITS64: u32 = 0x8000_0000;
const LITTLE: u32 = 0x4000_0000;
const N32: u32 = 0x2000_0000;

/// The bit that marks a system call of x32 on x86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// One ABI.
#[derive(Debug)]
pub(super) struct Arch {
    /// Its name in the specification.
    pub(super) name: &'static str,
    /// What the kernel puts into `seccomp_data.arch`.
    pub(super) audit: u32,
    /// Its column in the table of numbers.
    column: Option<usize>,
    /// Arguments are compared as 64-bit values. x32 has 64-bit registers, but its values are of 32 bits.
    pub(super) wide: bool,
    /// The numbers of socketcall and ipc, where they bundle other calls.
    multiplexers: Option<(u32, u32)>,
}

const fn arch(name: &'static str, audit: u32, column: usize, wide: bool) -> Arch {
    Arch { name, audit, column: Some(column), wide, multiplexers: None }
}

const fn bundling(name: &'static str, audit: u32, column: usize, wide: bool, first: u32) -> Arch {
    let multiplexers = Some((first + 102, first + 117));
    Arch { name, audit, column: Some(column), wide, multiplexers }
}

/// PA-RISC has no column: its calls can reach no kernel that Moat runs on, so nothing is compiled.
const fn numberless(name: &'static str, audit: u32) -> Arch {
    Arch { name, audit, column: None, wide: false, multiplexers: None }
}

pub(super) static ARCHES: [Arch; 20] = [
    arch("SCMP_ARCH_X86_64", 62 | BITS64 | LITTLE, 0, true),
    bundling("SCMP_ARCH_X86", 3 | LITTLE, 1, false, 0),
    arch("SCMP_ARCH_X32", 62 | BITS64 | LITTLE, 2, false),
    arch("SCMP_ARCH_AARCH64", 183 | BITS64 | LITTLE, 3, true),
    arch("SCMP_ARCH_ARM", 40 | LITTLE, 4, false),
    arch("SCMP_ARCH_RISCV64", 243 | BITS64 | LITTLE, 5, true),
    arch("SCMP_ARCH_LOONGARCH64", 258 | BITS64 | LITTLE, 6, true),
    bundling("SCMP_ARCH_S390X", 22 | BITS64, 7, true, 0),
    bundling("SCMP_ARCH_S390", 22, 8, false, 0),
    bundling("SCMP_ARCH_PPC64LE", 21 | BITS64 | LITTLE, 9, true, 0),
    bundling("SCMP_ARCH_PPC64", 21 | BITS64, 9, true, 0),
    bundling("SCMP_ARCH_PPC", 20, 10, false, 0),
    bundling("SCMP_ARCH_MIPSEL", 8 | LITTLE, 11, false, 4000),
    bundling("SCMP_ARCH_MIPS", 8, 11, false, 4000),
    arch("SCMP_ARCH_MIPSEL64", 8 | BITS64 | LITTLE, 12, true),
    arch("SCMP_ARCH_MIPS64", 8 | BITS64, 12, true),
    arch("SCMP_ARCH_MIPSEL64N32", 8 | BITS64 | LITTLE | N32, 13, false),
    arch("SCMP_ARCH_MIPS64N32", 8 | BITS64 | N32, 13, false),
    numberless("SCMP_ARCH_PARISC", 15),
    numberless("SCMP_ARCH_PARISC64", 15 | BITS64),
];

/// A call inside socketcall or ipc.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bundled {
    Socket(u32),
    Ipc(u32),
}

/// The calls that socketcall(2) and ipc(2) bundle, sorted by name, with their numbers there.
static BUNDLED: [(&str, Bundled); 32] = [
    ("accept", Bundled::Socket(5)),
    ("accept4", Bundled::Socket(18)),
    ("bind", Bundled::Socket(2)),
    ("connect", Bundled::Socket(3)),
    ("getpeername", Bundled::Socket(7)),
    ("getsockname", Bundled::Socket(6)),
    ("getsockopt", Bundled::Socket(15)),
    ("listen", Bundled::Socket(4)),
    ("msgctl", Bundled::Ipc(14)),
    ("msgget", Bundled::Ipc(13)),
    ("msgrcv", Bundled::Ipc(12)),
    ("msgsnd", Bundled::Ipc(11)),
    ("recv", Bundled::Socket(10)),
    ("recvfrom", Bundled::Socket(12)),
    ("recvmmsg", Bundled::Socket(19)),
    ("recvmsg", Bundled::Socket(17)),
    ("semctl", Bundled::Ipc(3)),
    ("semget", Bundled::Ipc(2)),
    ("semop", Bundled::Ipc(1)),
    ("semtimedop", Bundled::Ipc(4)),
    ("send", Bundled::Socket(9)),
    ("sendmmsg", Bundled::Socket(20)),
    ("sendmsg", Bundled::Socket(16)),
    ("sendto", Bundled::Socket(11)),
    ("setsockopt", Bundled::Socket(14)),
    ("shmat", Bundled::Ipc(21)),
    ("shmctl", Bundled::Ipc(24)),
    ("shmdt", Bundled::Ipc(22)),
    ("shmget", Bundled::Ipc(23)),
    ("shutdown", Bundled::Socket(13)),
    ("socket", Bundled::Socket(1)),
    ("socketpair", Bundled::Socket(8)),
];

impl Bundled {
    /// Whether socketcall or ipc bundles the call.
    pub(super) fn find(name: &str) -> Option<Self> {
        let found = BUNDLED.binary_search_by(|(known, _)| (*known).cmp(name));
        found.ok().and_then(|at| BUNDLED.get(at)).map(|(_, call)| *call)
    }
}

impl Arch {
    /// Finds an architecture by its name in the specification.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        ARCHES.iter().find(|arch| arch.name == name)
    }

    /// The architecture that this program is built for.
    pub(super) fn native() -> &'static Self {
        let name = if cfg!(target_arch = "aarch64") {
            "SCMP_ARCH_AARCH64"
        } else if cfg!(target_arch = "riscv64") {
            "SCMP_ARCH_RISCV64"
        } else if cfg!(target_arch = "loongarch64") {
            "SCMP_ARCH_LOONGARCH64"
        } else if cfg!(target_arch = "s390x") {
            "SCMP_ARCH_S390X"
        } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
            "SCMP_ARCH_PPC64LE"
        } else {
            "SCMP_ARCH_X86_64"
        };
        Self::find(name).unwrap_or(&ARCHES[0])
    }

    /// Whether there is anything to compile for it.
    pub(super) fn has_numbers(&self) -> bool {
        self.column.is_some()
    }

    /// The number of a call, without the bit of x32.
    pub(super) fn number(&self, row: &Row) -> Option<u32> {
        row.number(self.column?)
    }

    /// The number of socketcall or ipc, and which of their calls this is.
    pub(super) fn bundled(&self, call: Bundled) -> Option<(u32, u32)> {
        let (socketcall, ipc) = self.multiplexers?;
        Some(match call {
            Bundled::Socket(call) => (socketcall, call),
            Bundled::Ipc(call) => (ipc, call),
        })
    }

    pub(super) fn is_x32(&self) -> bool {
        self.audit == ARCHES[0].audit && !self.wide
    }

    /// s390 passes numbers above 255 in a register and 0 in the instruction, and the kernel leaves 0
    /// standing for a call that it does not know.
    pub(super) fn is_s390(&self) -> bool {
        self.audit & !BITS64 == 22
    }
}

/// Where the lower and the upper half of an argument lie in `struct seccomp_data`.
pub(super) fn halves(audit: u32, index: u32) -> (u32, u32) {
    let start = super::bpf::ARGUMENTS + 8 * index;
    if audit & LITTLE != 0 { (start, start + 4) } else { (start + 4, start) }
}

/// The short name of an architecture, for listings.
pub(super) fn short_name(audit: u32) -> Option<String> {
    let arch = ARCHES.iter().find(|arch| arch.audit == audit)?;
    arch.name.strip_prefix("SCMP_ARCH_").map(str::to_lowercase)
}
