//! `--security-opt`, `--log-driver`, `--log-opt` and `--storage-opt`.

use moat_model::workload::{LogSpec, SeccompChoice, SecuritySpec};

/// All of `--security-opt`; a profile is read here, so that what is saved does not hang on a file.
pub(crate) fn security(options: &[String]) -> Result<SecuritySpec, String> {
    let mut spec = SecuritySpec::default();
    for option in options {
        // Docker's older form has a colon, which is also within values.
        let (name, value) = option
            .split_once('=')
            .or_else(|| option.split_once(':'))
            .map_or((&**option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("no-new-privileges", value) => {
                spec.no_new_privileges = value.map_or(Ok(true), super::boolean)?;
            }

            ("seccomp", Some("unconfined")) => spec.seccomp = SeccompChoice::Unconfined,
            ("seccomp", Some("builtin")) => spec.seccomp = SeccompChoice::Default,
            ("seccomp", Some(path)) if !path.is_empty() => spec.seccomp = profile(path)?,
            ("apparmor", Some(profile)) if !profile.is_empty() => spec.apparmor = Some(profile.to_owned()),
            ("label", Some(part)) if !part.is_empty() => spec.label.push(part.to_owned()),
            ("systempaths", Some("unconfined")) => spec.unmask_paths = true,
            _ => {
                return Err(format!(
                    "{option:?} is not one of no-new-privileges, seccomp=unconfined|builtin|FILE, \
                     apparmor=PROFILE, label=PART and systempaths=unconfined"
                ));
            }
        }
    }
    Ok(spec)
}

fn profile(path: &str) -> Result<SeccompChoice, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("the seccomp profile {path}: {error}"))?;
    // Only whether it is JSON at all; what it says is checked where it is compiled.
    serde_json::from_str::<serde::de::IgnoredAny>(&text)
        .map_err(|error| format!("the seccomp profile {path} is no JSON: {error}"))?;
    Ok(SeccompChoice::Profile(text))
}

/// Where the output goes.
pub(crate) fn log(driver: Option<&str>, options: &[(String, String)]) -> Result<LogSpec, String> {
    let mut spec = LogSpec::default();
    match driver {
        None | Some("" | "json-file") => {}
        Some("none") if options.is_empty() => spec.keep = false,
        Some("none") => {
            return Err("--log-opt says how a log is kept, and --log-driver none keeps none".to_owned());
        }
        Some(other) => return Err(format!("--log-driver {other} is not one of json-file and none")),
    }
    for (name, value) in options {
        match &**name {
            "max-size" => {
                spec.max_bytes =
                    super::size::parse(value).map_err(|error| format!("--log-opt max-size: {error}"))?;
            }
            "max-file" => {
                spec.max_files =
                    value.parse().ok().filter(|count| (1..=1000).contains(count)).ok_or_else(|| {
                        format!("--log-opt max-file={value} is not a number from 1 to 1000")
                    })?;
            }
            _ => return Err(format!("--log-opt {name} is not one of max-size and max-file")),
        }
    }
    if spec.max_bytes == 0 {
        return Err("--log-opt max-size must be more than 0".to_owned());
    }
    Ok(spec)
}

/// `--storage-opt size=10g`: the quota of the writable layer.
pub(crate) fn storage(options: &[(String, String)]) -> Result<Option<u64>, String> {
    let mut bytes = None;
    for (name, value) in options {
        match &**name {
            "size" => {
                bytes =
                    Some(super::size::parse(value).map_err(|error| format!("--storage-opt size: {error}"))?);
            }
            _ => return Err(format!("--storage-opt {name} is not supported; only size is")),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use moat_model::workload::SeccompChoice;

    use super::{log, security, storage};

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn security_options() {
        let spec = security(&words(&[
            "no-new-privileges",
            "seccomp=unconfined",
            "label=type:t",
            "systempaths=unconfined",
        ]))
        .unwrap();
        assert!(spec.no_new_privileges && spec.unmask_paths);
        assert_eq!((spec.seccomp, spec.label), (SeccompChoice::Unconfined, words(&["type:t"])));
        assert!(!security(&words(&["no-new-privileges=false"])).unwrap().no_new_privileges);
        assert!(security(&words(&["no-new-privileges:true", "seccomp:unconfined", "label:disable"])).is_ok());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{}").unwrap();
        let option = format!("seccomp={}", file.path().display());
        assert_eq!(
            security(std::slice::from_ref(&option)).unwrap().seccomp,
            SeccompChoice::Profile("{}".to_owned())
        );
        std::fs::write(file.path(), "{").unwrap();
        assert!(security(&[option]).is_err());
        for text in [
            "",
            "seccomp",
            "seccomp=",
            "seccomp=/does/not/exist",
            "no-new-privileges=x",
            "proc-opts=x",
            "label=",
        ] {
            assert!(security(&words(&[text])).is_err(), "{text:?}");
        }
    }

    #[test]
    fn logs_and_quotas() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let spec = log(Some("json-file"), &[pair("max-size", "1m"), pair("max-file", "5")]).unwrap();
        assert_eq!((spec.keep, spec.max_bytes, spec.max_files), (true, 1 << 20, 5));
        assert!(!log(Some("none"), &[]).unwrap().keep);
        assert!(log(Some("syslog"), &[]).is_err());
        assert!(log(Some("none"), &[pair("max-size", "1m")]).is_err());
        for (name, value) in
            [("max-size", "x"), ("max-size", "0"), ("max-file", "0"), ("max-file", "x"), ("tag", "x")]
        {
            assert!(log(None, &[pair(name, value)]).is_err(), "{name}={value}");
        }
        assert_eq!(storage(&[pair("size", "10g")]), Ok(Some(10 << 30)));
        assert!(storage(&[pair("dm.fs", "x")]).is_err());
    }
}
