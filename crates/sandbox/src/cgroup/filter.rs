//! Device rules as an eBPF program of the type CGROUP_DEVICE.
//!
//! The kernel calls it with the kind of the device, the access that is asked for, and the numbers, and
//! allows the access when it returns 1. The rules are tried from the last to the first. r3 holds the
//! kinds of access that no later rule has decided: a rule that denies one of them ends with 0, a rule
//! that allows takes its own out, and when nothing is left the access is allowed.
//!
//! ```text
//! r2 = kind; r3 = access; r4 = major; r5 = minor
//! for each rule, last first:
//!     if r2 != kind goto next; if r4 != major goto next; if r5 != minor goto next
//!     allow: r3 &= ~access; if r3 != 0 goto next; return 1
//!     deny:  if !(r3 & access) goto next; return 0
//! return 0
//! ```

use moat_linux::bpf::Instruction;

use super::devices::{ALL, Kind, Rule};

/// BPF_DEVCG_DEV_BLOCK
const DEVICE_BLOCK: i32 = 1;
/// BPF_DEVCG_DEV_CHAR
const DEVICE_CHARACTER: i32 = 2;

/// r = *(u32 *)(source + offset)
const LOAD_WORD: u8 = 0x61;
/// 32-bit operations with a constant.
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
/// 32-bit jumps against a constant. The 32-bit class matters: minor and major are unsigned words, and the
/// constant would be sign-extended in a 64-bit comparison.
const JUMP_NOT_EQUAL: u8 = 0x56;
const JUMP_SET: u8 = 0x46;
const JUMP_ALWAYS: u8 = 0x05;
const EXIT: u8 = 0x95;

fn instruction(code: u8, destination: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination, offset, immediate }
}

fn load(destination: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD_WORD, registers: 1 << 4 | destination, offset, immediate: 0 }
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE, 0, 0, allow.into()), instruction(EXIT, 0, 0, 0)]
}

/// The program for the rules.
pub(super) fn compile(rules: &[Rule]) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx { access_type: access << 16 | kind, major, minor }
    let mut program = vec![
        load(2, 0),
        instruction(AND, 2, 0, 0xffff),
        load(3, 0),
        instruction(SHIFT_RIGHT, 3, 0, 16),
        load(4, 4),
        load(5, 8),
    ];
    for rule in rules.iter().rev() {
        if rule.is_for_all() {
            // Nothing before it can matter, and the verifier refuses code that nothing reaches.
            program.extend(answer(rule.allow));
            return program;
        }
        program.extend(one(rule));
    }
    program.extend(answer(false));
    program
}

fn one(rule: &Rule) -> Vec<Instruction> {
    let kind = match rule.kind {
        Kind::Any => None,
        Kind::Block => Some(DEVICE_BLOCK),
        Kind::Character => Some(DEVICE_CHARACTER),
    };
    let word = |number: u32| number.cast_signed();
    let tests = [(2, kind), (4, rule.major.map(word)), (5, rule.minor.map(word))];
    let tests: Vec<(u8, i32)> =
        tests.iter().filter_map(|(register, value)| Some((*register, (*value)?))).collect();
    let mut action = match (rule.allow, rule.access) {
        (true, access) => {
            let rest = i32::from(ALL & !access);
            vec![instruction(AND, 3, 0, rest), instruction(JUMP_NOT_EQUAL, 3, 2, 0)]
        }
        (false, ALL) => Vec::new(),
        // A set bit skips the jump to the next rule.
        (false, access) => {
            vec![instruction(JUMP_SET, 3, 1, access.into()), instruction(JUMP_ALWAYS, 0, 2, 0)]
        }
    };
    action.extend(answer(rule.allow));
    let mut code = Vec::new();
    for (index, (register, value)) in tests.iter().enumerate() {
        // At most three tests and four instructions: the distance is small.
        let distance = (tests.len() - index - 1 + action.len()) as i16;
        code.push(instruction(JUMP_NOT_EQUAL, *register, distance, *value));
    }
    code.extend(action);
    code
}

#[cfg(test)]
mod tests {
    use moat_model::oci;

    use super::super::devices::{MKNOD, READ, WRITE, checked};
    use super::*;

    /// Runs a program as the kernel would, and counts the steps.
    fn run(program: &[Instruction], kind: i32, access: u8, major: u32, minor: u32) -> bool {
        let context = [u32::from(access) << 16 | kind.cast_unsigned(), major, minor];
        let mut registers = [0_u32; 11];
        let mut next = 0_usize;
        for _ in 0..program.len() {
            let Instruction { code, offset, immediate, .. } = program[next];
            let to = usize::from(program[next].destination());
            let constant = immediate.cast_unsigned();
            next += 1;
            let jump = match code {
                LOAD_WORD => {
                    assert_eq!(program[next - 1].source(), 1);
                    registers[to] = context[offset as usize / 4];
                    false
                }
                AND => {
                    registers[to] &= constant;
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= constant;
                    false
                }
                MOVE => {
                    registers[to] = constant;
                    false
                }
                JUMP_NOT_EQUAL => registers[to] != constant,
                JUMP_SET => registers[to] & constant != 0,
                JUMP_ALWAYS => true,
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            };
            next += if jump { offset as usize } else { 0 };
        }
        panic!("the program does not end");
    }

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> oci::DeviceRule {
        let (major, minor) = (Some(major), Some(minor));
        oci::DeviceRule { allow, kind: kind.to_owned(), major, minor, access: access.to_owned() }
    }

    /// The rules by their meaning: each kind of access by the last rule that names it.
    fn meant(rules: &[Rule], kind: Kind, access: u8, major: u32, minor: u32) -> bool {
        [MKNOD, READ, WRITE].iter().filter(|bit| access & **bit != 0).all(|bit| {
            let last = rules.iter().rev().find(|rule| {
                (rule.kind == Kind::Any || rule.kind == kind)
                    && rule.major.is_none_or(|number| number == major)
                    && rule.minor.is_none_or(|number| number == minor)
                    && rule.access & bit != 0
            });
            last.is_some_and(|rule| rule.allow)
        })
    }

    fn assert_meant(rules: &[oci::DeviceRule]) {
        let rules = checked(rules).unwrap();
        let program = compile(&rules);
        for (kind, number) in [(Kind::Block, DEVICE_BLOCK), (Kind::Character, DEVICE_CHARACTER)] {
            for access in 1..=ALL {
                for major in [0, 1, 2, 8, u32::MAX] {
                    for minor in [0, 3, 5, 0x8000_0000] {
                        let answer = run(&program, number, access, major, minor);
                        assert_eq!(
                            answer,
                            meant(&rules, kind, access, major, minor),
                            "{kind:?} {major}:{minor} access {access} under {rules:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_last_match_wins_for_each_kind_of_access() {
        assert_meant(&[]);
        assert_meant(&[rule(true, "a", -1, -1, "rwm")]);
        assert_meant(&[rule(true, "c", 1, 3, "rwm"), rule(false, "a", -1, -1, "rwm")]);
        assert_meant(&[
            rule(false, "a", -1, -1, "rwm"),
            rule(true, "c", -1, -1, "m"),
            rule(true, "c", 1, 3, "r"),
            rule(true, "c", 1, 3, "w"),
            rule(true, "b", 8, -1, "rw"),
            rule(false, "b", 8, 5, "w"),
            rule(true, "a", 2, 0x8000_0000, "r"),
            rule(false, "a", u32::MAX.into(), -1, "m"),
        ]);
        assert_meant(&[rule(true, "", -1, -1, ""), rule(false, "c", 1, -1, "w"), rule(true, "c", 1, 5, "")]);
        assert_meant(&[rule(true, "a", -1, -1, "r"), rule(false, "a", -1, 3, "r")]);
    }

    #[test]
    fn what_the_program_looks_like() {
        let rules = checked(&[rule(false, "a", -1, -1, ""), rule(true, "c", 1, 3, "rw")]).unwrap();
        let text: Vec<String> = compile(&rules).iter().skip(6).map(Instruction::to_string).collect();
        assert_eq!(
            text,
            [
                "56 r2 r0 +6 2",
                "56 r4 r0 +5 1",
                "56 r5 r0 +4 3",
                "54 r3 r0 +0 1",
                "56 r3 r0 +2 0",
                "b4 r0 r0 +0 1",
                "95 r0 r0 +0 0",
                "b4 r0 r0 +0 0",
                "95 r0 r0 +0 0",
            ]
        );
    }
}
