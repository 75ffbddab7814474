//! What the rules say, read one by one without a program: the measure that programs are held against.

use moat_model::oci::Seccomp;

use super::arch::{ARCHES, Arch, X32_BIT};
use super::bpf::SeccompData;
use super::rules::{Condition, KILL_THREAD, NO_SUCH_CALL, Policy, Rule, Test};
use crate::Result;

/// The value that a filter for `config` must return for a call.
pub fn decide(config: &Seccomp, data: &SeccompData) -> Result<u32> {
    let policy = Policy::new(config)?;
    let number = data.nr as u32;
    let listed = |x32: bool| {
        policy
            .arches
            .iter()
            .find(|arch| arch.audit == data.arch && arch.has_numbers() && arch.is_x32() == x32)
    };
    let shared = data.arch == ARCHES[0].audit;
    // A tracer that skips a call writes -1 as its number, which is a call of x32 only where x32 is listed.
    let skipped = number == u32::MAX && listed(true).is_none();
    let x32 = shared && number >= X32_BIT && !skipped;
    let Some(arch) = listed(x32) else {
        return Ok(KILL_THREAD);
    };
    if shared && skipped {
        return Ok(policy.default);
    }
    let number = if x32 { number - X32_BIT } else { number };
    Ok(verdict(&policy, arch, number, &data.args))
}

fn verdict(policy: &Policy, arch: &Arch, number: u32, args: &[u64; 6]) -> u32 {
    let newest = if policy.hides_newer { policy.newest(arch) } else { None };
    if newest.is_some_and(|newest| number > newest || (number == 0 && arch.is_s390())) {
        return NO_SUCH_CALL;
    }
    let direct = |rule: &&Rule| rule.calls.iter().any(|call| arch.number(call.row) == Some(number));
    let fixed = policy.rules.iter().filter(direct).find(|rule| rule.alternatives.is_empty());
    if let Some(rule) = fixed {
        return rule.action;
    }
    let conditional = policy.rules.iter().find(|rule| holds(rule, arch, number, args));
    conditional.map_or(policy.default, |rule| rule.action)
}

fn holds(rule: &Rule, arch: &Arch, number: u32, args: &[u64; 6]) -> bool {
    let alternative = |skip_first: bool| {
        rule.alternatives.is_empty()
            || rule.alternatives.iter().any(|all| {
                all.iter().filter(|one| !skip_first || one.index != 0).all(|one| fits(one, arch, args))
            })
    };
    rule.calls.iter().any(|call| {
        let bundled = call.bundled.and_then(|bundled| arch.bundled(bundled));
        let inside = bundled.is_some_and(|(multiplexer, inner)| {
            number == multiplexer && args[0] as u32 == inner && (!arch.wide || args[0] >> 32 == 0)
        });
        (arch.number(call.row) == Some(number) && alternative(false)) || (inside && alternative(true))
    })
}

fn fits(condition: &Condition, arch: &Arch, args: &[u64; 6]) -> bool {
    let narrow = |value: u64| if arch.wide { value } else { value & u64::from(u32::MAX) };
    let arg = narrow(args.get(condition.index as usize).copied().unwrap_or_default());
    match condition.test {
        Test::Equal(value) => arg == narrow(value),
        Test::NotEqual(value) => arg != narrow(value),
        Test::AtLeast(value) => arg >= narrow(value),
        Test::Above(value) => arg > narrow(value),
        Test::AtMost(value) => arg <= narrow(value),
        Test::Below(value) => arg < narrow(value),
        Test::Masked { mask, value } => arg & mask == narrow(value & mask),
    }
}
