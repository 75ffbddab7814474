//! `--env`, `--env-file`, `--label` and `--label-file`.

use std::path::Path;

/// A variable as `NAME=value`. A name alone takes the value of the caller's variable; where there is none the
/// name stays alone, which removes the image's variable.
pub(crate) fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("", _)) => Err(format!("{text:?} has no name before the =")),
        Some(_) => Ok(text.to_owned()),
        None if text.is_empty() => Err("a variable needs a name".to_owned()),
        None => Ok(match std::env::var(text) {
            Ok(value) => format!("{text}={value}"),
            Err(_) => text.to_owned(),
        }),
    }
}

/// The lines of a file of variables. A name alone takes the caller's value, and is left out where the caller
/// has none.
pub(crate) fn variables_of(path: &Path) -> Result<Vec<String>, String> {
    lines_of(path)?
        .into_iter()
        .filter_map(|line| if line.contains('=') { Some(Ok(line)) } else { inherited(&line) })
        .collect()
}

fn inherited(name: &str) -> Option<Result<String, String>> {
    match std::env::var(name) {
        Ok(value) => Some(Ok(format!("{name}={value}"))),
        Err(std::env::VarError::NotPresent) => None,
        Err(std::env::VarError::NotUnicode(_)) => Some(Err(format!("the variable {name} is not UTF-8"))),
    }
}

/// The lines of a file of labels; a name alone has an empty value.
pub(crate) fn labels_of(path: &Path) -> Result<Vec<(String, String)>, String> {
    lines_of(path)?.iter().map(|line| super::pair(line)).collect()
}

/// Lines without comments and empty ones; each begins with a name without white space.
fn lines_of(path: &Path) -> Result<Vec<String>, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split_once('=').map_or(line, |(name, _)| name);
        let at = || format!("{}, line {}", path.display(), number + 1);
        if name.is_empty() {
            return Err(format!("{}: {line:?} has no name before the =", at()));
        }
        if name.contains(char::is_whitespace) {
            return Err(format!("{}: the name {name:?} has white space in it", at()));
        }
        lines.push(line.to_owned());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::{labels_of, variable, variables_of};

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn variables() {
        assert_eq!(variable("A=b=c"), Ok("A=b=c".to_owned()));
        assert_eq!(variable("A="), Ok("A=".to_owned()));
        assert_eq!(variable("PATH"), Ok(format!("PATH={}", std::env::var("PATH").unwrap())));
        assert_eq!(variable("MOAT_TEST_NOT_SET"), Ok("MOAT_TEST_NOT_SET".to_owned()));
        assert!(variable("=x").is_err() && variable("").is_err());
    }

    #[test]
    fn files_of_variables() {
        let good = file(b"\xef\xbb\xbf# comment\n\n  A=1 2 \nB=#x\r\nMOAT_TEST_NOT_SET\nPATH\n");
        let lines = variables_of(good.path()).unwrap();
        assert_eq!(lines[..2], ["A=1 2 ", "B=#x"]);
        assert!(lines.len() == 3 && lines[2].starts_with("PATH="), "{lines:?}");
        for bad in [&b"=x"[..], b"A B=1", b"A \n", b"\xff=1"] {
            assert!(variables_of(file(bad).path()).is_err(), "{bad:?}");
        }
        assert!(variables_of(std::path::Path::new("/does/not/exist")).is_err());
    }

    #[test]
    fn files_of_labels() {
        let labels = labels_of(file(b"a=1\nb\n").path()).unwrap();
        assert_eq!(labels, [("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())]);
    }
}
