//! From rules to a program.
//!
//! The program looks at the architecture, then at the number of the call, then, only for calls that have
//! conditions, at arguments. Numbers are a partition: an interval of neighbours that are treated the same
//! is one entry, and the partition becomes a search tree. A condition on an argument is a partition, too,
//! first of its upper, then of its lower half; so the rules of one call on one argument share one tree.
//!
//! The kernel keeps a bitmap of the numbers that are always allowed: it finds them by running the program
//! without arguments, so they cost nothing at all.

use moat_linux::seccomp::Instruction;

use super::arch::{self, Arch, X32_BIT};
use super::bpf::{ARCHITECTURE, Assembler, LIMIT, Line, NUMBER, Target, coalesce, op};
use super::rules::{Condition, KILL_THREAD, NO_SUCH_CALL, Policy, Test};
use crate::{Error, Result};

/// What happens to calls of an architecture that is not listed, as in libseccomp.
const FOREIGN: Target = Target::Return(KILL_THREAD);

/// One way for a call to get an action.
struct Chain<'a> {
    number: u32,
    /// The call inside socketcall or ipc.
    bundled: Option<u32>,
    conditions: &'a [Condition],
    action: u32,
}

/// Compiles checked rules.
pub(super) fn program(policy: &Policy) -> Result<Vec<Instruction>> {
    let mut out = Assembler::default();
    let mut entry = FOREIGN;
    let mut audits: Vec<u32> = Vec::with_capacity(policy.arches.len());
    for arch in policy.arches.iter().filter(|arch| arch.has_numbers()) {
        if !audits.contains(&arch.audit) {
            audits.push(arch.audit);
        }
    }
    // The program grows from its end: the native architecture, the first of the list, comes out nearest.
    for audit in audits.into_iter().rev() {
        let line = numbers(&mut out, policy, audit)?;
        let tree = out.search(&line);
        let body = out.load(NUMBER, tree);
        entry = out.branch(op::EQUAL, audit, body, entry);
        within(&out)?;
    }
    let entry = out.load(ARCHITECTURE, entry);
    let program = out.finish(entry);
    if program.len() > LIMIT {
        return Err(too_long());
    }
    Ok(program)
}

fn within(out: &Assembler) -> Result<()> {
    if out.len() > LIMIT { Err(too_long()) } else { Ok(()) }
}

fn too_long() -> Error {
    Error::new(format!("seccomp: the filter needs more than the {LIMIT} instructions that the kernel takes"))
        .hint("fewer conditions, or fewer architectures, make it shorter")
}

/// The partition of all numbers of one AUDIT_ARCH value, which x86_64 and x32 share.
fn numbers(out: &mut Assembler, policy: &Policy, audit: u32) -> Result<Line<u32>> {
    let find =
        |x32: bool| policy.arches.iter().copied().find(|arch| arch.audit == audit && arch.is_x32() == x32);
    let mut line = match find(false) {
        Some(arch) => calls(out, policy, arch, 0)?,
        None => vec![(0, FOREIGN)],
    };
    let x32 = find(true);
    if let Some(arch) = x32 {
        line.retain(|(start, _)| *start < X32_BIT);
        line.extend(calls(out, policy, arch, X32_BIT)?);
    } else if find(false).is_some_and(|arch| arch.name == "SCMP_ARCH_X86_64") {
        line.retain(|(start, _)| *start < X32_BIT);
        line.push((X32_BIT, FOREIGN));
        // A tracer that skips a call writes -1 as its number, which is no call of x32.
        line.push((u32::MAX, Target::Return(policy.default)));
    }
    coalesce(&mut line);
    Ok(line)
}

/// The partition of the numbers of one ABI, which start at `base`.
fn calls(out: &mut Assembler, policy: &Policy, arch: &Arch, base: u32) -> Result<Line<u32>> {
    let default = Target::Return(policy.default);
    let newest = if policy.hides_newer { policy.newest(arch) } else { None };
    let mut chains = chains(policy, arch)?;
    // Stable: the rules of one call keep their order.
    chains.sort_by_key(|chain| chain.number);
    let mut line: Line<u32> = vec![(base, default)];
    let mut put = |start: u32, target: Target| {
        if line.last().is_some_and(|(last, _)| *last == start) {
            line.pop();
        }
        line.push((start, target));
    };
    if newest.is_some() && arch.is_s390() {
        put(base, Target::Return(NO_SUCH_CALL));
        put(base + 1, default);
    }
    for same in chains.chunk_by(|one, other| one.number == other.number) {
        let Some(first) = same.first() else { continue };
        put(base + first.number, decide(out, arch, same, default));
        put(base + first.number + 1, default);
        within(out)?;
    }
    if let Some(newest) = newest {
        put(base + newest + 1, Target::Return(NO_SUCH_CALL));
    }
    coalesce(&mut line);
    Ok(line)
}

/// All chains of one ABI, in the order of the rules.
fn chains<'a>(policy: &'a Policy, arch: &Arch) -> Result<Vec<Chain<'a>>> {
    let mut chains = Vec::new();
    let mut conditional = 0usize;
    for rule in &policy.rules {
        let action = rule.action;
        for call in &rule.calls {
            let direct = arch.number(call.row).map(|number| (number, None));
            let bundled = call.bundled.and_then(|bundled| arch.bundled(bundled));
            let bundled = bundled.map(|(number, call)| (number, Some(call)));
            for (number, bundled) in direct.into_iter().chain(bundled) {
                if rule.alternatives.is_empty() {
                    chains.push(Chain { number, bundled, conditions: &[], action });
                }
                for conditions in &rule.alternatives {
                    chains.push(Chain { number, bundled, conditions, action });
                }
                conditional += rule.alternatives.len();
            }
        }
        // Far above what fits; it bounds the work for a hostile configuration.
        if conditional > 2 * LIMIT {
            return Err(too_long());
        }
    }
    Ok(chains)
}

/// What happens to one call. A rule without conditions stands above those that have some, as in
/// libseccomp; of the others the first that holds is taken.
fn decide(out: &mut Assembler, arch: &Arch, chains: &[Chain<'_>], default: Target) -> Target {
    let fixed = chains.iter().find(|chain| chain.bundled.is_none() && chain.conditions.is_empty());
    if let Some(chain) = fixed {
        return Target::Return(chain.action);
    }
    let mut next = default;
    let mut rest = chains;
    while let Some(last) = rest.last() {
        // Chains with one condition each on the same argument become one partition.
        let shared = single(last)
            .map_or(1, |index| rest.iter().rev().take_while(|chain| single(chain) == Some(index)).count());
        let (before, group) = rest.split_at(rest.len() - shared);
        rest = before;
        next = if shared > 1 { together(out, arch, group, next) } else { alone(out, arch, last, next) };
    }
    next
}

/// The argument of a chain that has one condition, which is an interval.
fn single(chain: &Chain<'_>) -> Option<u32> {
    match (chain.bundled, chain.conditions) {
        (Some(_), conditions) => conditions.iter().all(|one| one.index == 0).then_some(0),
        (None, [Condition { test: Test::Masked { .. }, .. }]) => None,
        (None, [condition]) => Some(condition.index),
        _ => None,
    }
}

/// The conditions of a chain as they are checked. Inside socketcall and ipc the first argument is the
/// call; what the rule says about it is about something else, and is left out, as in libseccomp.
fn conditions<'a>(chain: &'a Chain<'_>) -> impl DoubleEndedIterator<Item = Condition> + 'a {
    let call = chain.bundled.map(|call| Condition { index: 0, test: Test::Equal(call.into()) });
    let rest = chain.conditions.iter().filter(move |one| chain.bundled.is_none() || one.index != 0);
    call.into_iter().chain(rest.copied())
}

/// All conditions of a chain in turn.
fn alone(out: &mut Assembler, arch: &Arch, chain: &Chain<'_>, no: Target) -> Target {
    let mut yes = Target::Return(chain.action);
    for condition in conditions(chain).rev() {
        yes = match condition.test {
            Test::Masked { mask, value } => masked(out, arch, condition.index, (mask, value), (yes, no)),
            test => {
                let line = partition(arch, &[(test, yes)], no);
                argument(out, arch, condition.index, &line)
            }
        };
    }
    yes
}

/// Chains with one condition each, on the same argument; the first that holds is taken.
fn together(out: &mut Assembler, arch: &Arch, chains: &[Chain<'_>], no: Target) -> Target {
    let tests: Vec<(Test, Target)> = chains
        .iter()
        .flat_map(|chain| conditions(chain).map(|one| (one.test, Target::Return(chain.action))))
        .collect();
    let index = chains.first().and_then(single).unwrap_or_default();
    let line = partition(arch, &tests, no);
    argument(out, arch, index, &line)
}

/// The partition of an argument's values that some tests make; the first test that holds decides.
fn partition(arch: &Arch, tests: &[(Test, Target)], no: Target) -> Line<u64> {
    let most = if arch.wide { u64::MAX } else { u32::MAX.into() };
    let intervals: Vec<(u64, u64, Target)> = tests
        .iter()
        .flat_map(|(test, target)| intervals(*test, most).into_iter().flatten().map(|(a, b)| (a, b, *target)))
        .collect();
    let mut starts: Vec<u64> = vec![0];
    for (first, last, _) in &intervals {
        starts.push(*first);
        starts.extend(last.checked_add(1).filter(|next| *next <= most));
    }
    starts.sort_unstable();
    starts.dedup();
    let covering = |start: u64| intervals.iter().find(|(first, last, _)| (*first..=*last).contains(&start));
    let mut line: Line<u64> =
        starts.into_iter().map(|start| (start, covering(start).map_or(no, |found| found.2))).collect();
    coalesce(&mut line);
    line
}

/// The values for which a test holds. A narrow ABI compares the lower halves.
fn intervals(test: Test, most: u64) -> [Option<(u64, u64)>; 2] {
    let below = |value: u64| value.checked_sub(1).map(|last| (0, last));
    let above = |value: u64| (value < most).then(|| (value + 1, most));
    match test {
        Test::Equal(value) => [Some((value & most, value & most)), None],
        Test::NotEqual(value) => [below(value & most), above(value & most)],
        Test::AtLeast(value) => [Some((value & most, most)), None],
        Test::Above(value) => [above(value & most), None],
        Test::AtMost(value) => [Some((0, value & most)), None],
        Test::Below(value) => [below(value & most), None],
        Test::Masked { .. } => [None, None],
    }
}

/// Looks up an argument in a partition: its upper half first, where that matters.
fn argument(out: &mut Assembler, arch: &Arch, index: u32, line: &[(u64, Target)]) -> Target {
    let (lower, upper) = arch::halves(arch.audit, index);
    let low = |start: u64| start as u32;
    if !arch.wide {
        let narrow: Line<u32> = line.iter().map(|(start, target)| (low(*start), *target)).collect();
        let tree = out.search(&narrow);
        return out.load(lower, tree);
    }
    let mut highs: Line<u32> = Vec::new();
    let mut current = FOREIGN;
    for same in line.chunk_by(|one, other| one.0 >> 32 == other.0 >> 32) {
        let (Some(first), Some(last)) = (same.first(), same.last()) else { continue };
        let high = (first.0 >> 32) as u32;
        let mut lows: Line<u32> = same.iter().map(|(start, target)| (low(*start), *target)).collect();
        if low(first.0) != 0 {
            lows.insert(0, (0, current));
        }
        current = last.1;
        if highs.last().is_some_and(|(start, _)| *start == high) {
            highs.pop();
        }
        let tree = out.search(&lows);
        highs.push((high, if lows.len() > 1 { out.load(lower, tree) } else { tree }));
        highs.extend(high.checked_add(1).map(|next| (next, current)));
    }
    coalesce(&mut highs);
    if let [(_, only)] = highs.as_slice() {
        return *only;
    }
    let tree = out.search(&highs);
    out.load(upper, tree)
}

/// Whether the bits of a mask have a value.
fn masked(
    out: &mut Assembler,
    arch: &Arch,
    index: u32,
    (mask, value): (u64, u64),
    (yes, no): (Target, Target),
) -> Target {
    let (lower, upper) = arch::halves(arch.audit, index);
    let mut half = |offset: u32, mask: u32, value: u32, yes: Target| {
        if mask == 0 {
            return yes;
        }
        let test = out.branch(op::EQUAL, value & mask, yes, no);
        if test == yes {
            return yes;
        }
        let test = out.mask(mask, test);
        out.load(offset, test)
    };
    let yes = half(lower, mask as u32, value as u32, yes);
    if arch.wide { half(upper, (mask >> 32) as u32, (value >> 32) as u32, yes) } else { yes }
}
