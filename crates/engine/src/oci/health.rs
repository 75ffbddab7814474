//! The health check: the user's, merged over the image's.

use super::RunConfig;
use moat_model::workload::{HealthProbe, HealthSpec};

use crate::{Error, Result};

/// A health check with every value decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked; never [`HealthProbe::None`] or [`HealthProbe::Image`].
    pub probe: HealthProbe,
    /// The shell that a [`HealthProbe::Shell`] is given to.
    pub shell: Vec<String>,
    /// Time between two checks.
    pub interval_ms: u64,
    /// A check that takes longer has failed.
    pub timeout_ms: u64,
    /// Failures within this time after the start do not count.
    pub start_period_ms: u64,
    /// Time between two checks within the start period.
    pub start_interval_ms: u64,
    /// So many failures in a row make it unhealthy.
    pub retries: u32,
}

const NS_PER_MS: i64 = 1_000_000;

/// The check that is in force, or none.
///
/// Errors: the image's check has a form that nobody knows, or times were given where there is nothing to check.
pub fn health(wanted: Option<&HealthSpec>, image: &RunConfig) -> Result<Option<HealthCheck>> {
    let own = image.healthcheck.as_ref();
    let from_image = own.map(|check| probe(&check.test)).transpose()?.flatten();
    let probe = match wanted.map(|spec| &spec.probe) {
        Some(HealthProbe::None) => return Ok(None),
        Some(HealthProbe::Image) => match from_image {
            Some(probe) => probe,
            None => {
                return Err(Error::new("the image has no health check that the times could be for")
                    .hint("--health-cmd gives one"));
            }
        },
        Some(other) => other.clone(),
        None => match from_image {
            Some(probe) => probe,
            None => return Ok(None),
        },
    };
    let image_ms = |value: fn(&super::ImageHealth) -> i64| {
        let value = own.map(value).filter(|ns| *ns > 0)?;
        u64::try_from(value / NS_PER_MS).ok()
    };
    let given = |value: fn(&HealthSpec) -> Option<u64>| wanted.and_then(value).filter(|ms| *ms > 0);
    let retries = wanted.and_then(|spec| spec.retries).filter(|count| *count > 0);
    let image_retries = own.and_then(|check| u32::try_from(check.retries).ok()).filter(|count| *count > 0);
    let shell = image.shell.clone().filter(|shell| !shell.is_empty());
    Ok(Some(HealthCheck {
        probe,
        shell: shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]),
        interval_ms: given(|spec| spec.interval_ms).or(image_ms(|own| own.interval_ns)).unwrap_or(30_000),
        timeout_ms: given(|spec| spec.timeout_ms).or(image_ms(|own| own.timeout_ns)).unwrap_or(30_000),
        start_period_ms: given(|spec| spec.start_period_ms)
            .or(image_ms(|own| own.start_period_ns))
            .unwrap_or(0),
        start_interval_ms: given(|spec| spec.start_interval_ms)
            .or(image_ms(|own| own.start_interval_ns))
            .unwrap_or(5_000),
        retries: retries.or(image_retries).unwrap_or(3),
    }))
}

/// `["NONE"]`, `["CMD", ...]`, `["CMD-SHELL", LINE]`, or nothing.
fn probe(test: &[String]) -> Result<Option<HealthProbe>> {
    match test {
        [] => Ok(None),
        [kind] if kind == "NONE" => Ok(None),
        [kind, command @ ..] if kind == "CMD" && !command.is_empty() => {
            Ok(Some(HealthProbe::Exec { command: command.to_vec() }))
        }
        [kind, line] if kind == "CMD-SHELL" => Ok(Some(HealthProbe::Shell { line: line.clone() })),
        [kind, ..] => {
            Err(Error::new(format!("the image's health check {kind:?} has a form that is not known"))
                .hint("--no-healthcheck does without it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ImageHealth as Image;

    use super::super::tests::strings;
    use super::*;

    fn image(test: &[&str]) -> RunConfig {
        let check = Image { test: strings(test), interval_ns: 5_000_000_000, retries: 7, ..Image::default() };
        RunConfig { healthcheck: Some(check), ..RunConfig::default() }
    }

    fn spec(probe: HealthProbe) -> HealthSpec {
        HealthSpec {
            probe,
            interval_ms: None,
            timeout_ms: Some(100),
            start_period_ms: None,
            start_interval_ms: None,
            retries: None,
        }
    }

    #[test]
    fn the_users_over_the_images() {
        let own = health(None, &image(&["CMD-SHELL", "curl x"])).unwrap().unwrap();
        assert_eq!(own.probe, HealthProbe::Shell { line: "curl x".to_owned() });
        assert_eq!((own.interval_ms, own.timeout_ms, own.retries), (5000, 30_000, 7));
        let merged = health(Some(&spec(HealthProbe::Image)), &image(&["CMD", "true"])).unwrap().unwrap();
        assert_eq!((merged.interval_ms, merged.timeout_ms), (5000, 100));
        assert_eq!(merged.probe, HealthProbe::Exec { command: strings(&["true"]) });
        let other =
            health(Some(&spec(HealthProbe::Tcp { port: 80 })), &RunConfig::default()).unwrap().unwrap();
        assert_eq!(
            (other.probe, other.start_interval_ms, other.retries),
            (HealthProbe::Tcp { port: 80 }, 5000, 3)
        );
    }

    #[test]
    fn none_is_none() {
        assert_eq!(health(None, &RunConfig::default()).unwrap(), None);
        assert_eq!(health(None, &image(&["NONE"])).unwrap(), None);
        assert_eq!(health(None, &image(&[])).unwrap(), None);
        assert_eq!(health(Some(&spec(HealthProbe::None)), &image(&["CMD", "true"])).unwrap(), None);
        assert!(health(Some(&spec(HealthProbe::Image)), &image(&["NONE"])).is_err());
        assert!(health(None, &image(&["MAGIC", "x"])).is_err());
    }
}
