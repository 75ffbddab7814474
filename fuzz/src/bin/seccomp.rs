//! Any bytes as a seccomp configuration: a program comes out that does what the rules say, or a sentence.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_model::oci::Seccomp;
use moat_sandbox::seccomp::{self, SeccompData};

/// How many system calls each configuration is asked about.
const CALLS: usize = 48;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = serde_json::from_slice::<Seccomp>(bytes) else { return };
    let filter = match seccomp::compile(&config) {
        Ok(filter) => filter,
        Err(error) => {
            assert!(error.to_string().starts_with("seccomp: "));
            return;
        }
    };
    assert!(!filter.program.is_empty() && filter.program.len() <= 4096);
    for data in calls(&config) {
        let expected = seccomp::decide(&config, &data).expect("what compiles can be decided");
        assert_eq!(seccomp::evaluate(&filter.program, &data), expected, "{data:x?}\n{filter}");
    }
});

/// Calls near what the configuration is about: its names, their neighbours, its values, their neighbours.
fn calls(config: &Seccomp) -> impl Iterator<Item = SeccompData> {
    let listed = config.architectures.iter().map(String::as_str);
    let arches: Vec<&str> = listed.chain([seccomp::native_architecture(), "SCMP_ARCH_X86"]).collect();
    let names: Vec<&str> = config
        .syscalls
        .iter()
        .flat_map(|rule| &rule.names)
        .map(String::as_str)
        .take(64)
        .chain(["read"])
        .collect();
    let args = || config.syscalls.iter().flat_map(|rule| &rule.args).take(64);
    let values: Vec<u64> = args()
        .flat_map(|arg| [arg.value, arg.value_two, arg.value & arg.value_two])
        .chain([0, u64::MAX])
        .collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    (0..CALLS).map(move |_| {
        let arch = random.pick(&arches);
        let number = seccomp::number(arch, random.pick(&names)).unwrap_or(random.next() as u32);
        let mut data = SeccompData {
            nr: number.wrapping_add(random.near() as u32) as i32,
            arch: seccomp::audit_value(arch).unwrap_or_default(),
            ..SeccompData::default()
        };
        for arg in &mut data.args {
            *arg = random.pick(&values).wrapping_add(random.near());
        }
        data
    })
}

/// The same numbers for the same input.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// -1, 1 or, mostly, 0.
    fn near(&mut self) -> u64 {
        match self.next() % 8 {
            0 => u64::MAX,
            1 => 1,
            _ => 0,
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[(self.next() % from.len() as u64) as usize]
    }
}
