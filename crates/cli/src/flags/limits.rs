//! Limits and weights, which `run`, `create` and `update` share.

use clap::Args;
use moat_model::workload::LimitsSpec;

use super::{size, ulimit};

/// The flags that can also be changed while a workload runs.
#[derive(Args, Debug, Default)]
pub(crate) struct LimitFlags {
    /// Memory, as in 512m
    #[arg(short, long, value_name = "BYTES", value_parser = size::parse)]
    pub(crate) memory: Option<u64>,
    /// Memory that is given back first
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    pub(crate) memory_reservation: Option<u64>,
    /// Memory and swap together; -1 for unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = size::parse_or_unlimited)]
    pub(crate) memory_swap: Option<i64>,
    /// Processors, as in 1.5
    #[arg(long, value_name = "NUMBER", value_parser = ulimit::nano_cpus)]
    pub(crate) cpus: Option<u64>,
    /// Weight of processor time, 2 to 262144
    #[arg(short = 'c', long, value_name = "WEIGHT")]
    pub(crate) cpu_shares: Option<u64>,
    /// Microseconds of a CFS period
    #[arg(long, value_name = "US")]
    pub(crate) cpu_period: Option<u64>,
    /// Microseconds of processor time in a period
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// Microseconds of a real-time period
    #[arg(long, value_name = "US")]
    pub(crate) cpu_rt_period: Option<u64>,
    /// Microseconds of real-time scheduling in a period
    #[arg(long, value_name = "US")]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// Processors it may run on, as in 0-2,4
    #[arg(long, value_name = "LIST", value_parser = list)]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "LIST", value_parser = list)]
    pub(crate) cpuset_mems: Option<String>,
    /// Most tasks; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT", value_parser = ulimit::weight)]
    pub(crate) blkio_weight: Option<u16>,
    /// Refused: kernels have no such limit any more
    #[arg(long, hide = true, value_parser = super::refused("kernels have no limit of their own memory any more"))]
    pub(crate) kernel_memory: Option<String>,
}

/// Numbers and ranges between commas.
fn list(text: &str) -> Result<String, String> {
    let number = |part: &str| part.parse::<u32>().ok().filter(|_| !part.starts_with('+'));
    let good = |part: &str| match part.split_once('-') {
        None => number(part).is_some(),
        Some((first, last)) => match (number(first), number(last)) {
            (Some(first), Some(last)) => first <= last,
            _ => false,
        },
    };
    if text.split(',').all(good) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no list of numbers and ranges, such as 0-2,4"))
}

impl LimitFlags {
    /// The wish; 0 is "no limit", as for Docker.
    pub(crate) fn spec(self) -> Result<LimitsSpec, String> {
        if self.cpus.is_some_and(|cpus| cpus > 0) && (self.cpu_period.is_some() || self.cpu_quota.is_some()) {
            return Err("--cpus says what --cpu-period and --cpu-quota say, too; give one of both".to_owned());
        }
        let positive = |value: Option<u64>| value.filter(|value| *value > 0);
        Ok(LimitsSpec {
            memory_bytes: positive(self.memory),
            memory_reservation_bytes: positive(self.memory_reservation),
            memory_swap_bytes: self.memory_swap.filter(|bytes| *bytes != 0),
            nano_cpus: positive(self.cpus),
            cpu_shares: positive(self.cpu_shares),
            cpu_period_us: positive(self.cpu_period),
            cpu_quota_us: self.cpu_quota.filter(|quota| *quota != 0),
            cpu_rt_period_us: positive(self.cpu_rt_period),
            cpu_rt_runtime_us: self.cpu_rt_runtime.filter(|runtime| *runtime != 0),
            cpuset_cpus: self.cpuset_cpus,
            cpuset_mems: self.cpuset_mems,
            pids: self.pids_limit.filter(|pids| *pids != 0),
            blkio_weight: self.blkio_weight.filter(|weight| *weight != 0),
            ..LimitsSpec::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};
    use moat_model::workload::LimitsSpec;

    use super::LimitFlags;

    fn parse(words: &[&str]) -> Result<LimitsSpec, String> {
        let line = LimitFlags::augment_args(clap::Command::new("x").no_binary_name(true));
        let mut matches = line.try_get_matches_from(words).map_err(|error| error.to_string())?;
        LimitFlags::from_arg_matches_mut(&mut matches).map_err(|error| error.to_string())?.spec()
    }

    #[test]
    fn values() {
        let spec = parse(&["-m64m", "--memory-swap", "-1", "--cpus=1.5", "-c", "512", "--pids-limit", "-1"])
            .unwrap();
        assert_eq!((spec.memory_bytes, spec.memory_swap_bytes), (Some(64 << 20), Some(-1)));
        assert_eq!((spec.nano_cpus, spec.cpu_shares, spec.pids), (Some(1_500_000_000), Some(512), Some(-1)));
        assert_eq!(
            parse(&["-m", "0", "--pids-limit=0", "--cpus", "0", "--cpu-quota=0"]),
            Ok(LimitsSpec::default())
        );
        assert_eq!(parse(&["--cpuset-cpus", "0-2,4"]).unwrap().cpuset_cpus.as_deref(), Some("0-2,4"));
        for words in [
            &["-m", "-1"][..],
            &["--cpus", "1", "--cpu-quota", "5"],
            &["--cpuset-cpus", "2-0"],
            &["--cpuset-cpus", "0,"],
            &["--blkio-weight", "5"],
            &["--kernel-memory", "1m"],
            &["--cpu-shares", "-1"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
