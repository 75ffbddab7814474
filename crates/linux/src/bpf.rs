//! bpf(2): the device filter of a cgroup v2.
//!
//! Only what a device filter needs: load a program of the type CGROUP_DEVICE, attach it to a group,
//! ask which are attached, replace and detach them.

use std::fmt;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::{Error, Result, fd_name, named, syscall};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
const BPF_F_REPLACE: u32 = 1 << 2;

/// The kernel attaches at most 64 programs to one group.
const MOST_PROGRAMS: usize = 64;

/// `struct bpf_insn`: one instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Class, size or operation, and mode or source.
    pub code: u8,
    /// Destination register in the low, source register in the high four bits.
    pub registers: u8,
    /// Of a jump, in instructions after the next one; of a load, in bytes.
    pub offset: i16,
    /// The constant operand.
    pub immediate: i32,
}

impl Instruction {
    /// The destination register.
    pub fn destination(self) -> u8 {
        self.registers & 0xf
    }

    /// The source register.
    pub fn source(self) -> u8 {
        self.registers >> 4
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, offset, immediate, .. } = self;
        write!(f, "{code:02x} r{} r{} {offset:+} {immediate}", self.destination(), self.source())
    }
}

/// The part of `union bpf_attr` that BPF_PROG_LOAD reads.
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

/// BPF_PROG_QUERY.
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> rustix::io::Result<libc::c_long> {
    // SAFETY: the attributes have the layout of the command and their true size; the pointers inside
    // them belong to values that the callers keep through the call.
    syscall(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn new_fd(returned: libc::c_long) -> OwnedFd {
    // SAFETY: called on what a bpf(2) command that makes a descriptor has just returned.
    unsafe { OwnedFd::from_raw_fd(returned as libc::c_int) }
}

/// Loads a device filter; `name` (at most 15 bytes) is what bpftool(8) shows.
///
/// Errors: EPERM without CAP_BPF or CAP_SYS_ADMIN; EINVAL or EACCES when the verifier refuses the
/// program, then the last line of its log is part of the error.
pub fn load_device_filter(program: &[Instruction], name: &str) -> Result<OwnedFd> {
    let mut short = [0_u8; 16];
    for (to, from) in short.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let mut load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name: short,
        attach_type: BPF_CGROUP_DEVICE,
        ..Load::default()
    };
    match bpf(BPF_PROG_LOAD, &mut load) {
        Ok(returned) => Ok(new_fd(returned)),
        Err(errno) => {
            let mut log = vec![0_u8; 64 * 1024];
            load.log_level = 1;
            load.log_size = log.len() as u32;
            load.log = log.as_mut_ptr() as u64;
            // The second try is only for the verifier's reasons.
            drop(bpf(BPF_PROG_LOAD, &mut load).map(new_fd));
            Err(Error::new(
                "bpf",
                format!("PROG_LOAD, {} instructions{}", program.len(), reason(&log)),
                errno,
            ))
        }
    }
}

/// The verifier's last sentence: it ends with one line of statistics.
fn reason(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let line = text.trim_end_matches('\0').lines().rev().find(|line| !line.starts_with("processed "));
    line.filter(|line| !line.is_empty()).map(|line| format!(" ({line})")).unwrap_or_default()
}

/// Attaches a device filter to a group beside those that are there, or in place of one of them.
///
/// A device may be used when every program on the way up to the root allows it.
pub fn attach_device_filter(
    group: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let mut attach = Attach {
        target: number(group),
        program: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI | if replaced.is_some() { BPF_F_REPLACE } else { 0 },
        replaced: replaced.map_or(0, number),
    };
    let flags = if replaced.is_some() { "ALLOW_MULTI|REPLACE" } else { "ALLOW_MULTI" };
    named(bpf(BPF_PROG_ATTACH, &mut attach), "bpf", || {
        format!("PROG_ATTACH, {}, CGROUP_DEVICE, {flags}", fd_name(group))
    })
    .map(drop)
}

/// Detaches a device filter from a group.
pub fn detach_device_filter(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let mut attach = Attach {
        target: number(group),
        program: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        flags: 0,
        replaced: 0,
    };
    named(bpf(BPF_PROG_DETACH, &mut attach), "bpf", || {
        format!("PROG_DETACH, {}, CGROUP_DEVICE", fd_name(group))
    })
    .map(drop)
}

/// The ids of the device filters that are attached to a group itself.
pub fn attached_device_filters(group: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut ids = [0_u32; MOST_PROGRAMS];
    let mut query = Query {
        target: number(group),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        padding: 0,
    };
    named(bpf(BPF_PROG_QUERY, &mut query), "bpf", || {
        format!("PROG_QUERY, {}, CGROUP_DEVICE", fd_name(group))
    })?;
    Ok(ids.iter().take(query.count as usize).copied().collect())
}

/// Opens a loaded program; `None` when it is gone meanwhile.
pub fn program_by_id(id: u32) -> Result<Option<OwnedFd>> {
    let mut by_id = ById { id, next: 0, flags: 0 };
    match bpf(BPF_PROG_GET_FD_BY_ID, &mut by_id) {
        Ok(returned) => Ok(Some(new_fd(returned))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Error::new("bpf", format!("PROG_GET_FD_BY_ID, {id}"), errno)),
    }
}
