//! `--change`: instructions of a Dockerfile that set what a workload of an image starts with.

use moat_engine::image::{HealthCheck, RunConfig};

use crate::failure::{Failure, Result};

/// Applies instructions in their order.
pub(crate) fn apply(config: &mut RunConfig, changes: &[String]) -> Result<()> {
    for change in changes {
        instruction(config, change.trim())
            .map_err(|error| Failure::new(format!("--change {change:?}: {error}")))?;
    }
    Ok(())
}

fn instruction(config: &mut RunConfig, line: &str) -> Result<(), String> {
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err("the instruction has no argument".to_owned());
    }
    match name.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = Some(command(rest)?),
        "ENTRYPOINT" => config.entrypoint = Some(command(rest)?),
        "ENV" => {
            for (name, value) in pairs(rest)? {
                let prefix = format!("{name}=");
                config.env.retain(|known| !known.starts_with(&prefix));
                config.env.push(format!("{name}={value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest)?),
        "USER" => rest.clone_into(&mut config.user),
        "WORKDIR" => config.working_dir = folder(&config.working_dir, rest),
        "EXPOSE" => {
            for word in rest.split_whitespace() {
                config.exposed_ports.extend(crate::flags::port::expose(word)?);
            }
        }
        "VOLUME" => config.volumes.extend(list(rest)?),
        "STOPSIGNAL" => config.stop_signal = Some(rest.to_owned()),
        "ONBUILD" => config.on_build.get_or_insert_default().push(rest.to_owned()),
        "HEALTHCHECK" => config.healthcheck = Some(health(rest)?),
        other => {
            return Err(format!(
                "{other} is not one of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, \
                 VOLUME and WORKDIR"
            ));
        }
    }
    Ok(())
}

/// A list in JSON, or a line for the shell.
fn command(text: &str) -> Result<Vec<String>, String> {
    match text.starts_with('[') {
        true => serde_json::from_str(text).map_err(|error| format!("the list is malformed: {error}")),
        false => Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()]),
    }
}

/// A list in JSON, or words.
fn list(text: &str) -> Result<Vec<String>, String> {
    match text.starts_with('[') {
        true => serde_json::from_str(text).map_err(|error| format!("the list is malformed: {error}")),
        false => words(text),
    }
}

/// A folder, from the one before where it is relative.
fn folder(before: &str, text: &str) -> String {
    match text.starts_with('/') {
        true => text.to_owned(),
        false => format!("{}/{text}", before.trim_end_matches('/')),
    }
}

fn health(text: &str) -> Result<HealthCheck, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(HealthCheck { test: vec!["NONE".to_owned()], ..HealthCheck::default() });
    }
    let mut check = HealthCheck::default();
    let mut rest = text;
    while let Some(flag) = rest.strip_prefix("--") {
        let (word, after) = flag.split_once(char::is_whitespace).ok_or("CMD is missing")?;
        let (name, value) = word.split_once('=').ok_or_else(|| format!("--{word} has no value"))?;
        let duration = || {
            let nanoseconds = crate::flags::duration::parse_ns(value)?;
            i64::try_from(nanoseconds).map_err(|_| format!("{value} is too long"))
        };
        match name {
            "interval" => check.interval_ns = duration()?,
            "timeout" => check.timeout_ns = duration()?,
            "start-period" => check.start_period_ns = duration()?,
            "start-interval" => check.start_interval_ns = duration()?,
            "retries" => check.retries = value.parse().map_err(|_| format!("{value:?} is no number"))?,
            _ => return Err(format!("--{name} is no flag of a health check")),
        }
        rest = after.trim_start();
    }
    let line = rest.get(..4).filter(|word| word.eq_ignore_ascii_case("cmd ")).map(|_| rest[4..].trim());
    let line = line.filter(|line| !line.is_empty()).ok_or("CMD is missing")?;
    check.test = match line.starts_with('[') {
        true => std::iter::once("CMD".to_owned()).chain(command(line)?).collect(),
        false => vec!["CMD-SHELL".to_owned(), line.to_owned()],
    };
    Ok(check)
}

/// `NAME=VALUE ...` with quotes, or the older `NAME VALUE`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) =
            text.split_once(char::is_whitespace).ok_or_else(|| format!("{text:?} has no value"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words(text)?.iter().map(|word| crate::flags::assignment(word)).collect()
}

/// Words between white space; quotes and backslashes keep it.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', None | Some('"')) => {
                let next = letters.next().ok_or("a \\ stands at the end")?;
                word.get_or_insert_default().push(next);
            }
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, Some(open)) if letter == open => quote = None,
            (letter, None) if letter.is_whitespace() => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use moat_engine::image::RunConfig;

    use super::apply;

    fn of(changes: &[&str]) -> crate::failure::Result<RunConfig> {
        let mut config = RunConfig::default();
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        apply(&mut config, &changes).map(|()| config)
    }

    #[test]
    fn instructions() {
        let config = of(&[
            "CMD [\"/bin/sh\", \"-c\", \"echo hi\"]",
            "entrypoint exec top",
            "ENV A=1 B=\"two words\" C=x\\ y",
            "ENV A 2 three",
            "LABEL a=b",
            "USER 1000:0",
            "WORKDIR /srv",
            "WORKDIR app",
            "EXPOSE 80 53/udp",
            "VOLUME /data /more",
            "VOLUME [\"/third\"]",
            "STOPSIGNAL SIGINT",
            "HEALTHCHECK --interval=5s --retries=2 CMD curl -f http://localhost",
        ])
        .unwrap();
        assert_eq!(config.cmd.unwrap(), ["/bin/sh", "-c", "echo hi"]);
        assert_eq!(config.entrypoint.unwrap(), ["/bin/sh", "-c", "exec top"]);
        assert_eq!(config.env, ["B=two words", "C=x y", "A=2 three"]);
        assert_eq!((&*config.user, &*config.working_dir), ("1000:0", "/srv/app"));
        assert!(config.exposed_ports.contains("80/tcp") && config.exposed_ports.contains("53/udp"));
        assert_eq!(config.volumes.len(), 3);
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        let health = config.healthcheck.unwrap();
        assert_eq!(health.test, ["CMD-SHELL", "curl -f http://localhost"]);
        assert_eq!((health.interval_ns, health.retries), (5_000_000_000, 2));
    }

    #[test]
    fn what_is_refused() {
        for change in [
            "",
            "CMD",
            "RUN ls",
            "COPY a b",
            "CMD [\"a\"",
            "ENV A",
            "ENV =x",
            "EXPOSE x",
            "ENV A=\"x",
            "HEALTHCHECK",
            "HEALTHCHECK --interval=5s",
            "HEALTHCHECK --what=1 CMD x",
            "HEALTHCHECK curl",
            "LABEL a=b c",
            "ENV A=x\\",
        ] {
            assert!(of(&[change]).is_err(), "{change:?}");
        }
    }
}
