//! Classic BPF as seccomp knows it: an assembler that works from the end, an interpreter, a listing.
//!
//! A jump of BPF goes forwards only, and a conditional one by at most 255 instructions. So the program is
//! built from its last instruction to its first: where a jump goes is known when it is made. What lies
//! too far is reached over an unconditional jump, or, if it is a return, by one more return.

use std::collections::BTreeMap;
use std::fmt;

use moat_linux::seccomp::Instruction;

use super::{arch, rules};

/// The most instructions that the kernel takes (BPF_MAXINSNS).
pub(super) const LIMIT: usize = 4096;

/// Where the system call's number, the architecture and the arguments lie in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
pub(super) const ARGUMENTS: u32 = 16;

/// The operations that are used, with the kernel's codes for them.
pub(super) mod op {
    pub(crate) const LOAD: u16 = 0x20;
    pub(crate) const JUMP: u16 = 0x05;
    pub(crate) const EQUAL: u16 = 0x15;
    pub(crate) const GREATER: u16 = 0x25;
    pub(crate) const AT_LEAST: u16 = 0x35;
    pub(crate) const ANY_BIT: u16 = 0x45;
    pub(crate) const AND: u16 = 0x54;
    pub(crate) const RETURN: u16 = 0x06;
}

/// Where a test leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The filter ends with this value.
    Return(u32),
    /// To an instruction, counted from the end of the program.
    At(usize),
}

/// A partition of numbers: each entry says where its interval starts and where it leads. The first
/// starts at 0.
pub(super) type Line<N> = Vec<(N, Target)>;

/// Builds a program from its end.
#[derive(Default)]
pub(super) struct Assembler {
    /// The last instruction comes first.
    reversed: Vec<Instruction>,
    /// The most recent return of each value, counted from the end.
    returns: BTreeMap<u32, usize>,
}

impl Assembler {
    /// How many instructions there are.
    pub(super) fn len(&self) -> usize {
        self.reversed.len()
    }

    /// Puts an instruction in front.
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Target {
        self.reversed.push(Instruction { code, jt, jf, k });
        Target::At(self.reversed.len() - 1)
    }

    /// A place for `target` from which at most `more` instructions lie before the jump that wants it.
    fn near(&mut self, target: Target, more: usize) -> usize {
        let known = match target {
            Target::At(place) => Some(place),
            Target::Return(value) => self.returns.get(&value).copied(),
        };
        let reach = self.len() + more;
        match (target, known) {
            (_, Some(place)) if reach - place - 1 <= usize::from(u8::MAX) => place,
            (Target::Return(value), _) => {
                self.push(op::RETURN, 0, 0, value);
                self.returns.insert(value, self.len() - 1);
                self.len() - 1
            }
            (Target::At(place), _) => {
                self.push(op::JUMP, 0, 0, (self.len() - place - 1) as u32);
                self.len() - 1
            }
        }
    }

    /// A test of the accumulator.
    pub(super) fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        // Reaching one of them may take an instruction, which moves the other one away by one.
        let first = self.near(yes, 1);
        let second = self.near(no, 0);
        let jump = |from: usize, to: usize| (from - to - 1) as u8;
        let from = self.len();
        self.push(code, jump(from, first), jump(from, second), k)
    }

    /// Loads a word of `struct seccomp_data`, then goes on at `next`.
    pub(super) fn load(&mut self, offset: u32, next: Target) -> Target {
        self.before(next, op::LOAD, offset)
    }

    /// Keeps the bits of `mask`, then goes on at `next`.
    pub(super) fn mask(&mut self, mask: u32, next: Target) -> Target {
        if mask == u32::MAX { next } else { self.before(next, op::AND, mask) }
    }

    /// An instruction that falls through to `next`; before a return nothing is needed.
    fn before(&mut self, next: Target, code: u16, k: u32) -> Target {
        match next {
            Target::Return(_) => next,
            Target::At(place) => {
                if place + 1 != self.len() {
                    self.push(op::JUMP, 0, 0, (self.len() - place - 1) as u32);
                }
                self.push(code, 0, 0, k)
            }
        }
    }

    /// A search tree over a partition of what the accumulator holds.
    pub(super) fn search(&mut self, line: &[(u32, Target)]) -> Target {
        match line {
            [] => Target::Return(rules::KILL_THREAD),
            [(_, only)] => *only,
            // One number between others that lead to the same place.
            [(_, below), (start, inside), (end, above)] if below == above && end - start == 1 => {
                self.branch(op::EQUAL, *start, *inside, *below)
            }
            _ => {
                let (left, right) = line.split_at(line.len() / 2);
                let pivot = right.first().map_or(0, |(start, _)| *start);
                // What lies behind comes first, the left half last: it is nearer to its test.
                let above = self.search(right);
                let below = self.search(left);
                self.branch(op::AT_LEAST, pivot, above, below)
            }
        }
    }

    /// The program, which starts at `entry`.
    pub(super) fn finish(mut self, entry: Target) -> Vec<Instruction> {
        match entry {
            Target::Return(value) => {
                self.push(op::RETURN, 0, 0, value);
            }
            Target::At(place) if place + 1 != self.len() => {
                self.push(op::JUMP, 0, 0, (self.len() - place - 1) as u32);
            }
            Target::At(_) => {}
        }
        self.reversed.reverse();
        self.reversed
    }
}

/// Joins neighbours of a partition that lead to the same place.
pub(super) fn coalesce<N>(line: &mut Line<N>) {
    line.dedup_by(|next, kept| next.1 == kept.1);
}

/// What a filter sees of a system call (`struct seccomp_data`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeccompData {
    /// The number.
    pub nr: i32,
    /// The architecture, an AUDIT_ARCH value.
    pub arch: u32,
    /// Where the instruction stands.
    pub instruction_pointer: u64,
    /// The arguments.
    pub args: [u64; 6],
}

impl SeccompData {
    /// The word at an offset, in the byte order of the architecture.
    fn word(&self, offset: u32) -> Option<u32> {
        let half = |value: u64, lower: bool| if lower { value as u32 } else { (value >> 32) as u32 };
        match offset {
            NUMBER => Some(self.nr as u32),
            ARCHITECTURE => Some(self.arch),
            8 | 12 => Some(half(self.instruction_pointer, offset == 8)),
            _ if !offset.is_multiple_of(4) || offset < ARGUMENTS => None,
            _ => {
                let index = (offset - ARGUMENTS) / 8;
                let value = *self.args.get(index as usize)?;
                Some(half(value, arch::halves(self.arch, index).0 == offset))
            }
        }
    }
}

/// Runs a program as the kernel would: the value that it returns, KILL_PROCESS for a broken program.
pub fn evaluate(program: &[Instruction], data: &SeccompData) -> u32 {
    run(program, data).unwrap_or(rules::KILL_PROCESS)
}

fn run(program: &[Instruction], data: &SeccompData) -> Option<u32> {
    let mut accumulator = 0;
    let mut at = 0usize;
    // Jumps go forwards only, so this ends.
    loop {
        let Instruction { code, jt, jf, k } = *program.get(at)?;
        at += 1;
        let holds = match code {
            op::LOAD => {
                accumulator = data.word(k)?;
                continue;
            }
            op::AND => {
                accumulator &= k;
                continue;
            }
            op::JUMP => {
                at = at.checked_add(k as usize)?;
                continue;
            }
            op::RETURN => return Some(k),
            op::EQUAL => accumulator == k,
            op::GREATER => accumulator > k,
            op::AT_LEAST => accumulator >= k,
            op::ANY_BIT => accumulator & k != 0,
            _ => return None,
        };
        at += usize::from(if holds { jt } else { jf });
    }
}

/// A program as text, one instruction on a line, with the places that jumps go to.
pub(super) struct Listing<'a>(pub(super) &'a [Instruction]);

impl Listing<'_> {
    /// Which word each instruction finds in the accumulator. Jumps go forwards, so one pass tells.
    fn loaded(&self) -> Vec<u32> {
        let mut loaded = vec![NUMBER; self.0.len()];
        for (at, &Instruction { code, jt, jf, k }) in self.0.iter().enumerate() {
            let word = if code == op::LOAD { k } else { loaded.get(at).copied().unwrap_or(NUMBER) };
            let skips = match code {
                op::RETURN => continue,
                op::LOAD | op::AND => [0, 0],
                op::JUMP => [k as usize, k as usize],
                _ => [jt.into(), jf.into()],
            };
            for skip in skips {
                if let Some(place) = loaded.get_mut((at + 1).saturating_add(skip)) {
                    *place = word;
                }
            }
        }
        loaded
    }
}

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (&Instruction { code, jt, jf, k }, loaded)) in self.0.iter().zip(self.loaded()).enumerate() {
            let place = |skip: u32| at as u64 + 1 + u64::from(skip);
            let (yes, no) = (place(jt.into()), place(jf.into()));
            let value = operand(loaded, k);
            write!(f, "{at:4}  ")?;
            match code {
                op::LOAD => writeln!(f, "load {}", word_name(k))?,
                op::AND => writeln!(f, "and  {k:#x}")?,
                op::JUMP => writeln!(f, "goto {}", place(k))?,
                op::RETURN => writeln!(f, "ret  {}", rules::action_name(k))?,
                op::EQUAL => writeln!(f, "if == {value} goto {yes} else {no}")?,
                op::GREATER => writeln!(f, "if >  {value} goto {yes} else {no}")?,
                op::AT_LEAST => writeln!(f, "if >= {value} goto {yes} else {no}")?,
                op::ANY_BIT => writeln!(f, "if &  {k:#x} goto {yes} else {no}")?,
                _ => writeln!(f, "op {code:#x} {k:#x}, {yes}, {no}")?,
            }
        }
        Ok(())
    }
}

fn operand(loaded: u32, value: u32) -> String {
    match loaded {
        NUMBER => value.to_string(),
        ARCHITECTURE => arch::short_name(value).unwrap_or_else(|| format!("{value:#x}")),
        _ => format!("{value:#x}"),
    }
}

fn word_name(offset: u32) -> String {
    match offset {
        NUMBER => "number".to_owned(),
        ARCHITECTURE => "architecture".to_owned(),
        8 | 12 => "instruction pointer".to_owned(),
        _ => {
            let byte = offset.saturating_sub(ARGUMENTS);
            format!("arg{}[{}]", byte / 8, byte % 8)
        }
    }
}
