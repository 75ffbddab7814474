//! The program image of this process: the file that /proc/self/exe leads to.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::ptr;

use rustix::io::Errno;

use crate::{Error, Result, fd_name, named, syscall};

/// `struct prctl_mm_map` of prctl(2), PR_SET_MM_MAP.
#[repr(C)]
#[derive(Default)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// A mapping of the program's file.
struct Mapping {
    start: usize,
    length: usize,
    offset: u64,
    protection: i32,
}

/// Makes this process run from another view of its own file: every mapping of the file is replaced by one of
/// `file`, which must have the same content, and /proc/self/exe leads to `file` from then on.
///
/// This is what execve(2) of `file` would do to the image, at a third of its cost, and without starting over.
/// The process must have a single thread. Errors: EPERM without CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN; EINVAL
/// where the kernel has no checkpoint support. After an error the process may run from a mixture of both views,
/// which does no harm.
pub fn move_to(file: BorrowedFd<'_>) -> Result<()> {
    let refuse = |errno| Error::new("prctl", format!("PR_SET_MM_MAP, {}", fd_name(file)), errno);
    let own = std::fs::read_link("/proc/self/exe").map_err(|_| refuse(Errno::NOENT))?;
    let own = own.to_str().ok_or_else(|| refuse(Errno::INVAL))?;
    let maps = crate::fs::read_text(Path::new("/proc/self/maps"))?;
    for mapping in maps.lines().filter_map(|line| parse(line, own)) {
        // What is writable, or was until it was relocated (RELRO), holds this process's own values. All of that
        // lies behind the text; before it there are only constants.
        if mapping.protection & libc::PROT_EXEC != 0 || mapping.offset == 0 {
            map_file(&mapping, file)?;
        } else {
            copy(&mapping)?;
        }
    }
    let mut map = layout().ok_or_else(|| refuse(Errno::INVAL))?;
    map.exe_fd = file.as_raw_fd().cast_unsigned();
    // SAFETY: the structure has the size that is given and lives through the call; the addresses are those that
    // are in force.
    let returned = unsafe {
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size_of::<MemoryMap>(), 0)
    };
    syscall(returned.into()).map_err(refuse).map(drop)
}

/// One line of /proc/self/maps, if it is of the file `own`: `start-end perms offset dev inode path`.
fn parse(line: &str, own: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    line.ends_with(own).then_some(())?;
    let (start, end) = range.split_once('-')?;
    let number = |text: &str| usize::from_str_radix(text, 16).ok();
    let start = number(start)?;
    let bits = [('r', libc::PROT_READ), ('w', libc::PROT_WRITE), ('x', libc::PROT_EXEC)];
    let set = bits.iter().filter(|(letter, _)| permissions.contains(*letter));
    Some(Mapping {
        start,
        length: number(end)?.checked_sub(start)?,
        offset: u64::from_str_radix(offset, 16).ok()?,
        protection: set.fold(0, |all, (_, bit)| all | bit),
    })
}

fn map_file(mapping: &Mapping, file: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the range is replaced by the same bytes, with the same protection, in one step of the kernel's; that
    // this code itself may lie in it makes no difference to it.
    let mapped = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(mapping.start),
            mapping.length,
            mapping.protection,
            libc::MAP_PRIVATE | libc::MAP_FIXED,
            file.as_raw_fd(),
            mapping.offset.cast_signed(),
        )
    };
    named(check(mapped), "mmap", || {
        format!("{:#x}, {} bytes, {}", mapping.start, mapping.length, fd_name(file))
    })
}

/// Replaces a range by anonymous memory with the same content.
fn copy(mapping: &Mapping) -> Result<()> {
    let text = || format!("{:#x}, {} bytes", mapping.start, mapping.length);
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new anonymous mapping overlaps nothing.
    let fresh = unsafe {
        libc::mmap(
            ptr::null_mut(),
            mapping.length,
            writable,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
            -1,
            0,
        )
    };
    named(check(fresh), "mmap", text)?;
    // SAFETY: both ranges have this length, the source is readable, and they do not overlap. Nothing runs between
    // the copy and the move that writes to the source: there is one thread, and it is here. The move replaces the
    // source by its copy in one step.
    let moved = unsafe {
        ptr::copy_nonoverlapping(
            ptr::with_exposed_provenance::<u8>(mapping.start),
            fresh.cast::<u8>(),
            mapping.length,
        );
        libc::mremap(
            fresh,
            mapping.length,
            mapping.length,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            ptr::without_provenance_mut::<libc::c_void>(mapping.start),
        )
    };
    named(check(moved), "mremap", text)?;
    if mapping.protection == writable {
        return Ok(());
    }
    // SAFETY: the range was just mapped; it gets the protection that it had.
    let returned = unsafe { libc::mprotect(moved, mapping.length, mapping.protection) };
    named(syscall(returned.into()), "mprotect", text).map(drop)
}

fn check(mapped: *mut libc::c_void) -> rustix::io::Result<()> {
    if mapped == libc::MAP_FAILED { syscall(-1).map(drop) } else { Ok(()) }
}

/// The layout in force: fields 26 to 28 and 45 to 51 of /proc/self/stat, proc(5), and the break.
fn layout() -> Option<MemoryMap> {
    let text = crate::fs::read_text(Path::new("/proc/self/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<u64> = rest.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    // The first field after the name is number 3.
    let field = |number: usize| fields.get(number - 3).copied();
    // SAFETY: a break of 0 asks for the present one.
    let brk = unsafe { libc::syscall(libc::SYS_brk, 0) };
    Some(MemoryMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_stack: field(28)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk: u64::try_from(brk).ok()?,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
        ..MemoryMap::default()
    })
}
