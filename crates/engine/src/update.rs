//! New limits for a workload, in force at once where it runs.

use moat_model::workload::{LimitsSpec, RestartPolicy};
use moat_sandbox::change;
use moat_sandbox::host::Host;

use crate::launch::sandbox_id;
use crate::oci::{self, HostFacts};
use crate::{Context, Error, Result, Workload};

impl Workload {
    /// Changes the limits that `wanted` names, and the restart policy where one is given; the others stay as they are.
    ///
    /// Errors: a limit that can not be had, and then nothing has changed.
    pub fn update(&self, wanted: &LimitsSpec, restart: Option<RestartPolicy>) -> Result<()> {
        let what = || format!("update workload {}", self.name());
        self.refuse_microvm("can not change the limits of")?;
        refuse_fixed(wanted).context(what)?;
        let _lock = self.folder().lock()?;
        // Whoever held the lock may have changed it.
        let mut record = self
            .folder()
            .record()?
            .ok_or_else(|| Error::not_found(format!("workload {} does not exist any more", self.name())))?;
        let merged = merge(&record.spec.limits, wanted);
        let facts = HostFacts::detect(Host::detect()?)?;
        let blocks = oci::devices::block_devices(&merged)?;
        let resources = oci::resources(&merged, &facts, &blocks).context(what)?;
        let state = self.state()?;
        if state.is_running() && state.process.is_alive() {
            change::update(&self.engine().sandbox(), &sandbox_id(self)?, &resources)
                .map_err(Error::from)
                .context(what)?;
        }
        record.spec.limits = merged;
        if let Some(policy) = restart {
            record.spec.restart = policy;
        }
        self.folder().save_record(&record)?;
        self.tell(crate::events::Action::Update, &[])
    }
}

/// What a process is born with.
fn refuse_fixed(wanted: &LimitsSpec) -> Result<()> {
    let refuse =
        |flag: &str| Err(Error::invalid(format!("{flag} can not be changed once a workload was created")));
    if !wanted.ulimits.is_empty() {
        return refuse("--ulimit");
    }
    if wanted.oom_score_adj.is_some() {
        return refuse("--oom-score-adj");
    }
    Ok(())
}

/// What is named takes the place of what was there. A new limit of memory takes the derived limit of swap along; a
/// number of processors and a quota say the same, so the one ends the other.
fn merge(old: &LimitsSpec, new: &LimitsSpec) -> LimitsSpec {
    let list = |old: &Vec<_>, new: &Vec<_>| if new.is_empty() { old.clone() } else { new.clone() };
    let quota = new.cpu_quota_us.is_some() || new.cpu_period_us.is_some();
    let (nano_cpus, cpu_quota_us, cpu_period_us) = match (new.nano_cpus, quota) {
        (Some(nano), false) => (Some(nano), None, None),
        (None, false) => (old.nano_cpus, old.cpu_quota_us, old.cpu_period_us),
        (nano, true) => {
            (nano, new.cpu_quota_us.or(old.cpu_quota_us), new.cpu_period_us.or(old.cpu_period_us))
        }
    };
    LimitsSpec {
        memory_bytes: new.memory_bytes.or(old.memory_bytes),
        memory_reservation_bytes: new.memory_reservation_bytes.or(old.memory_reservation_bytes),
        memory_swap_bytes: new.memory_swap_bytes.or(old.memory_swap_bytes),
        memory_swappiness: new.memory_swappiness.or(old.memory_swappiness),
        oom_kill_disable: new.oom_kill_disable || old.oom_kill_disable,
        oom_score_adj: old.oom_score_adj,
        nano_cpus,
        cpu_shares: new.cpu_shares.or(old.cpu_shares),
        cpu_period_us,
        cpu_quota_us,
        cpu_rt_period_us: new.cpu_rt_period_us.or(old.cpu_rt_period_us),
        cpu_rt_runtime_us: new.cpu_rt_runtime_us.or(old.cpu_rt_runtime_us),
        cpuset_cpus: new.cpuset_cpus.clone().or_else(|| old.cpuset_cpus.clone()),
        cpuset_mems: new.cpuset_mems.clone().or_else(|| old.cpuset_mems.clone()),
        pids: new.pids.or(old.pids),
        blkio_weight: new.blkio_weight.or(old.blkio_weight),
        blkio_weight_device: list(&old.blkio_weight_device, &new.blkio_weight_device),
        device_read_bps: list(&old.device_read_bps, &new.device_read_bps),
        device_write_bps: list(&old.device_write_bps, &new.device_write_bps),
        device_read_iops: list(&old.device_read_iops, &new.device_read_iops),
        device_write_iops: list(&old.device_write_iops, &new.device_write_iops),
        ulimits: old.ulimits.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_changes() {
        let old =
            LimitsSpec { memory_bytes: Some(1), pids: Some(5), nano_cpus: Some(7), ..LimitsSpec::default() };
        let new = LimitsSpec { memory_bytes: Some(2), cpu_quota_us: Some(9), ..LimitsSpec::default() };
        let merged = merge(&old, &new);
        assert_eq!((merged.memory_bytes, merged.pids), (Some(2), Some(5)));
        assert_eq!((merged.nano_cpus, merged.cpu_quota_us), (None, Some(9)));
        let back = merge(&merged, &LimitsSpec { nano_cpus: Some(3), ..LimitsSpec::default() });
        assert_eq!((back.nano_cpus, back.cpu_quota_us), (Some(3), None));
        assert_eq!(merge(&old, &LimitsSpec::default()), old);
    }

    #[test]
    fn what_a_process_is_born_with_stays() {
        let wanted = LimitsSpec { oom_score_adj: Some(1), ..LimitsSpec::default() };
        assert!(
            refuse_fixed(&wanted).unwrap_err().to_string().starts_with("--oom-score-adj can not be changed")
        );
    }
}
