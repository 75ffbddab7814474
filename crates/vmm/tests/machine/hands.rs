//! A guest that is nothing but hands: in a machine of the real program it does, instruction by instruction, what
//! the test asks for by a mailbox in its memory. So each access comes out of KVM and takes the whole way: exit,
//! bus, device, event loop, under the filters that the program puts on itself.
#![allow(dead_code, reason = "several test programs use parts of this")]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iced_x86::code_asm::*;
use moat_vmm::virtio::Memory;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Where the program puts a flat image in 64-bit mode.
const CODE: u64 = 0x10_0000;
const MAILBOX: u64 = 0x20_0000;
/// The table of interrupt gates, which the guest fills in itself.
const GATES: u64 = 0x21_0000;
const STACK: u64 = 0x22_0000;
const MEMORY_BYTES: u64 = 64 << 20;
/// What lies here and behind is the drivers'.
pub(crate) const FREE: u64 = 4 << 20;

/// The mailbox: number of the request, what, two arguments, number of the answer, the exception that came of it,
/// what CPUID said.
const ASKED: u64 = MAILBOX;
const WHAT: u64 = MAILBOX + 8;
const FIRST: u64 = MAILBOX + 16;
const SECOND: u64 = MAILBOX + 24;
const ANSWERED: u64 = MAILBOX + 32;
const EXCEPTION: u64 = MAILBOX + 40;
const LEAF: u64 = MAILBOX + 48;

/// What the hands can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Do {
    Out8,
    Out16,
    Out32,
    In8,
    In16,
    In32,
    Write8,
    Write16,
    Write32,
    Write64,
    Read8,
    Read16,
    Read32,
    Read64,
    ReadMsr,
    WriteMsr,
    Cpuid,
    /// An instruction of VMX.
    Vmxon,
    /// One of SVM.
    Vmrun,
    WriteCr4,
    ReadCr4,
    /// `REP OUTSB`: the port, how many bytes from [`FREE`] on.
    OutString,
}

/// An exception of the processor, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception(pub(crate) u64);
pub(crate) const UNDEFINED: Exception = Exception(6);
pub(crate) const PROTECTION: Exception = Exception(13);

/// Writes the instructions of one action.
type Action = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The guest's code. RBX is the mailbox, R15 the number of the last request.
fn code() -> Vec<u8> {
    assemble().unwrap()
}

fn assemble() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut again, mut done, mut gates) = (a.create_label(), a.create_label(), a.create_label());
    let mut handlers = [a.create_label(), a.create_label()];
    a.mov(rsp, STACK)?;
    a.mov(rbx, MAILBOX)?;
    a.xor(r15, r15)?;
    // Gates for #UD and #GP: the code segment, present, of 64 bits.
    for (vector, handler) in [(6_u64, handlers[0]), (13, handlers[1])] {
        a.mov(rdi, GATES + vector * 16)?;
        a.lea(rax, ptr(handler))?;
        a.mov(word_ptr(rdi), ax)?;
        a.mov(word_ptr(rdi + 2), 0x10)?;
        a.mov(word_ptr(rdi + 4), 0x8e00)?;
        a.shr(rax, 16)?;
        a.mov(dword_ptr(rdi + 6), eax)?;
        a.mov(dword_ptr(rdi + 10), 0)?;
    }
    a.lidt(ptr(gates))?;
    a.mov(qword_ptr(rbx + 32), -1)?;

    a.set_label(&mut again)?;
    a.pause()?;
    a.mov(rax, qword_ptr(rbx))?;
    a.cmp(rax, r15)?;
    a.je(again)?;
    a.mov(r15, rax)?;
    a.mov(rcx, qword_ptr(rbx + 8))?;
    a.mov(rdx, qword_ptr(rbx + 16))?;
    a.mov(rax, qword_ptr(rbx + 24))?;
    a.mov(qword_ptr(rbx + 40), -1)?;
    let actions: [(Do, Action); 22] = [
        (Do::Out8, |a| a.out(dx, al)),
        (Do::Out16, |a| a.out(dx, ax)),
        (Do::Out32, |a| a.out(dx, eax)),
        (Do::In8, |a| a.in_(al, dx)),
        (Do::In16, |a| a.in_(ax, dx)),
        (Do::In32, |a| a.in_(eax, dx)),
        (Do::Write8, |a| a.mov(byte_ptr(rdx), al)),
        (Do::Write16, |a| a.mov(word_ptr(rdx), ax)),
        (Do::Write32, |a| a.mov(dword_ptr(rdx), eax)),
        (Do::Write64, |a| a.mov(qword_ptr(rdx), rax)),
        (Do::Read8, |a| a.mov(al, byte_ptr(rdx))),
        (Do::Read16, |a| a.mov(ax, word_ptr(rdx))),
        (Do::Read32, |a| a.mov(eax, dword_ptr(rdx))),
        (Do::Read64, |a| a.mov(rax, qword_ptr(rdx))),
        (Do::ReadMsr, |a| {
            a.mov(ecx, edx)?;
            a.rdmsr()?;
            a.shl(rdx, 32)?;
            a.or(rax, rdx)
        }),
        (Do::WriteMsr, |a| {
            a.mov(ecx, edx)?;
            a.mov(rdx, rax)?;
            a.shr(rdx, 32)?;
            a.wrmsr()
        }),
        (Do::Cpuid, |a| {
            a.mov(rdi, rbx)?;
            a.mov(ecx, eax)?;
            a.mov(eax, edx)?;
            a.cpuid()?;
            a.mov(dword_ptr(rdi + 48), eax)?;
            a.mov(dword_ptr(rdi + 52), ebx)?;
            a.mov(dword_ptr(rdi + 56), ecx)?;
            a.mov(dword_ptr(rdi + 60), edx)?;
            a.mov(rbx, rdi)
        }),
        (Do::Vmxon, |a| a.vmxon(qword_ptr(rdx))),
        (Do::Vmrun, |a| a.vmrun()),
        (Do::WriteCr4, |a| a.mov(cr4, rax)),
        (Do::ReadCr4, |a| a.mov(rax, cr4)),
        (Do::OutString, |a| {
            a.mov(rsi, FREE)?;
            a.mov(rcx, rax)?;
            a.cld()?;
            a.rep().outsb()
        }),
    ];
    for (what, action) in actions {
        let mut next = a.create_label();
        a.cmp(ecx, what as i32)?;
        a.jne(next)?;
        action(&mut a)?;
        a.jmp(done)?;
        a.set_label(&mut next)?;
        // An instruction has one label at most, and the next one may have its own.
        a.nop()?;
    }
    a.set_label(&mut done)?;
    a.mov(qword_ptr(rbx + 24), rax)?;
    a.mov(qword_ptr(rbx + 32), r15)?;
    a.jmp(again)?;
    for (vector, handler) in [6, 13].into_iter().zip(&mut handlers) {
        a.set_label(handler)?;
        a.mov(qword_ptr(rbx + 40), vector)?;
        // Nobody returns to what has failed.
        a.mov(rsp, STACK)?;
        a.jmp(done)?;
    }
    a.set_label(&mut gates)?;
    a.dw(&[0xfff])?;
    a.dq(&[GATES])?;
    a.assemble(CODE)
}

/// A folder of the test's own.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let path = std::env::temp_dir().join(format!("moat-hands-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// As text, for an argument.
    pub(crate) fn text(&self, name: &str) -> String {
        self.join(name).to_str().unwrap().to_owned()
    }

    /// A file of zeroes.
    pub(crate) fn disk(&self, name: &str, bytes: u64) -> String {
        File::create(self.join(name)).unwrap().set_len(bytes).unwrap();
        self.text(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A machine of the real program with the hands in it.
pub(crate) struct Machine {
    pub(crate) child: Child,
    pub(crate) memory: Memory,
    asked: std::cell::Cell<u64>,
}

/// The program, to be run with further arguments.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moat-vmm"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Machine {
    /// A machine with these arguments.
    pub(crate) fn new(folder: &Folder, arguments: &[&str]) -> Self {
        Self::adopt(Self::command(folder, arguments).spawn().unwrap())
    }

    /// The command for it.
    pub(crate) fn command(folder: &Folder, arguments: &[&str]) -> Command {
        let image = folder.text("hands.bin");
        std::fs::write(&image, code()).unwrap();
        let size = format!("{}M", MEMORY_BYTES >> 20);
        program(&[&["run", "--flat", &image, "--flat-mode", "long", "--memory", &size], arguments].concat())
    }

    /// A machine that somebody else has started with the hands in it, or from a snapshot of such.
    pub(crate) fn adopt(mut child: Child) -> Self {
        let memory = loop {
            if let Some(memory) = memory_of(&child) {
                break memory;
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{status}: {}", rest(child));
            }
            std::thread::yield_now();
        };
        let machine = Self { child, memory, asked: std::cell::Cell::new(0) };
        machine.wait(u64::MAX);
        machine
    }

    fn put(&self, address: u64, value: u64) {
        self.memory.store(value, GuestAddress(address), Ordering::SeqCst).unwrap();
    }

    fn get(&self, address: u64) -> u64 {
        self.memory.load(GuestAddress(address), Ordering::SeqCst).unwrap()
    }

    /// Waits for an answer; false when the machine has ended instead.
    fn comes(&self, number: u64) -> bool {
        let stat = format!("/proc/{}/stat", self.child.id());
        while self.get(ANSWERED) != number {
            for _ in 0..100 {
                std::thread::yield_now();
            }
            // A dead child is a zombie until somebody asks.
            if !std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                return self.get(ANSWERED) == number;
            }
        }
        true
    }

    fn wait(&self, number: u64) {
        let came = self.comes(number);
        assert!(came, "the machine has ended instead of doing what it was asked for: {}", self.last_words());
    }

    fn answer(&self) -> Result<u64, Exception> {
        match self.get(EXCEPTION) {
            u64::MAX => Ok(self.get(SECOND)),
            number => Err(Exception(number)),
        }
    }

    /// What came of the last request, unless it was the machine's end.
    pub(crate) fn answer_or_end(&self) -> Option<Result<u64, Exception>> {
        self.comes(self.asked.get()).then(|| self.answer())
    }

    /// What a machine that has ended said on standard error.
    fn last_words(&self) -> String {
        let mut words = vec![0; 4096];
        let count = rustix::io::read(self.child.stderr.as_ref().unwrap(), &mut words).unwrap();
        String::from_utf8_lossy(&words[..count]).into_owned()
    }

    /// Asks, and does not wait: for what ends the machine.
    pub(crate) fn ask(&self, what: Do, first: u64, second: u64) {
        self.put(WHAT, what as u64);
        self.put(FIRST, first);
        self.put(SECOND, second);
        self.asked.set(self.asked.get() + 1);
        self.put(ASKED, self.asked.get());
    }

    /// Does it, and gives what RAX holds then, or the exception.
    pub(crate) fn attempt(&self, what: Do, first: u64, second: u64) -> Result<u64, Exception> {
        self.ask(what, first, second);
        self.wait(self.asked.get());
        self.answer()
    }

    pub(crate) fn run(&self, what: Do, first: u64, second: u64) -> u64 {
        self.attempt(what, first, second).unwrap()
    }

    /// EAX, EBX, ECX, EDX.
    pub(crate) fn cpuid(&self, leaf: u32) -> [u32; 4] {
        self.run(Do::Cpuid, leaf.into(), 0);
        [0, 4, 8, 12].map(|at| self.memory.load(GuestAddress(LEAF + at), Ordering::SeqCst).unwrap())
    }

    /// Writes bytes to a port, one after the other.
    pub(crate) fn say(&self, port: u64, bytes: &[u8]) {
        for byte in bytes {
            self.run(Do::Out8, port, u64::from(*byte));
        }
    }

    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Ends the guest with an exit code; gives the program's, and what it has printed.
    pub(crate) fn leave(self, code: u8) -> (ExitStatus, Vec<u8>, String) {
        self.ask(Do::Out8, 0x603, code.into());
        self.end()
    }

    /// Waits for the program's end.
    pub(crate) fn end(mut self) -> (ExitStatus, Vec<u8>, String) {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output().unwrap();
        (output.status, output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn rest(child: Child) -> String {
    String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr).into_owned()
}

/// The machine's memory, once the guest has said that it is ready.
fn memory_of(child: &Child) -> Option<Memory> {
    let folder = PathBuf::from(format!("/proc/{}/fd", child.id()));
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        let deleted = target.to_string_lossy().ends_with("(deleted)");
        if !deleted || std::fs::metadata(entry.path()).map_or(0, |file| file.len()) != MEMORY_BYTES {
            continue;
        }
        let Ok(file) = File::options().read(true).write(true).open(entry.path()) else { continue };
        let mut ready = [0; 8];
        file.read_exact_at(&mut ready, ANSWERED).unwrap();
        if u64::from_le_bytes(ready) != u64::MAX {
            return None;
        }
        let range = (GuestAddress(0), MEMORY_BYTES as usize, Some(FileOffset::new(file, 0)));
        return Some(Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap()));
    }
    None
}

/// Whether anything of a machine is left there.
pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
