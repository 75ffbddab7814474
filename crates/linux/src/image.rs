//! The program image of this process: the file that /proc/self/exe leads to.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::ptr;

use rustix::io::Errno;

use crate::{Error, Result, fd_name, named, syscall};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

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

/// A part of this program's memory, as one of its program headers describes it: elf(5), `Elf64_Phdr`.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub kind: u32,
    pub flags: u32,
    pub start: usize,
    /// The bytes that come from the file; what is behind them was zero at first.
    file_length: usize,
    pub length: usize,
    offset: u64,
}

impl Part {
    /// Where the page begins in which it begins.
    pub(crate) fn first_page(&self) -> usize {
        self.start & !(PAGE - 1)
    }
}

/// The parts of this program. None where the kernel does not tell.
pub(crate) fn parts() -> impl Iterator<Item = Part> + Clone {
    let headers = headers();
    // Where the program was put, beside where it was linked to.
    let itself = headers.iter().find(|header| header.p_type == libc::PT_PHDR);
    let shift = itself.map_or(0, |header| headers.as_ptr().addr().wrapping_sub(header.p_vaddr as usize));
    headers.iter().map(move |header| Part {
        kind: header.p_type,
        flags: header.p_flags,
        start: shift.wrapping_add(header.p_vaddr as usize),
        file_length: header.p_filesz as usize,
        length: header.p_memsz as usize,
        offset: header.p_offset,
    })
}

/// This program's variables: the writable parts that stay writable.
pub(crate) fn variables() -> impl Iterator<Item = Part> {
    let parts = parts();
    let read_only = parts.clone().find(|part| part.kind == libc::PT_GNU_RELRO);
    parts.filter(move |part| {
        part.kind == libc::PT_LOAD
            && part.flags & libc::PF_W != 0
            && read_only.is_none_or(|read_only| read_only.start != part.start)
    })
}

fn headers() -> &'static [libc::Elf64_Phdr] {
    // SAFETY: reads what the kernel gave to this process at its start.
    let (at, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    if at == 0 {
        return &[];
    }
    // SAFETY: the kernel has told where the program's own headers are mapped, and how many; they are constant.
    unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(at as usize), count as usize) }
}

/// A mapping of the program's file, in whole pages.
struct Mapping {
    start: usize,
    length: usize,
    offset: u64,
    protection: i32,
}

impl Mapping {
    fn of(part: &Part) -> Self {
        let bits =
            [(libc::PF_R, libc::PROT_READ), (libc::PF_W, libc::PROT_WRITE), (libc::PF_X, libc::PROT_EXEC)];
        let start = part.first_page();
        Self {
            start,
            length: (part.start + part.file_length).next_multiple_of(PAGE) - start,
            offset: part.offset & !(PAGE as u64 - 1),
            protection: bits
                .iter()
                .filter(|(flag, _)| part.flags & flag != 0)
                .fold(0, |all, (_, bit)| all | bit),
        }
    }
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
    let loaded = parts().filter(|part| part.kind == libc::PT_LOAD && part.file_length != 0);
    for part in loaded {
        let mapping = Mapping::of(&part);
        // What is writable, or was until it was relocated (RELRO), holds this process's own values.
        if part.flags & libc::PF_W == 0 { map_file(&mapping, file)? } else { copy(&mapping)? }
    }
    for part in parts().filter(|part| part.kind == libc::PT_GNU_RELRO) {
        protect(&part)?;
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
    named(check(moved), "mremap", text)
}

/// Makes read-only again what was until it was copied. The part ends with a page.
fn protect(part: &Part) -> Result<()> {
    let start = part.first_page();
    let length = (part.start + part.length - start) & !(PAGE - 1);
    // SAFETY: this is what the program's start did; nobody writes there.
    let returned = unsafe { libc::mprotect(ptr::without_provenance_mut(start), length, libc::PROT_READ) };
    named(syscall(returned.into()), "mprotect", || format!("{start:#x}, {length} bytes")).map(drop)
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
