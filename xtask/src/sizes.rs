//! `cargo xtask sizes`: the functions and files that have grown long. A report, never a failure:
//! some long functions are a table, and a person decides.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command;

const FUNCTION_LINES: usize = 70;
const FILE_LINES: usize = 500;

pub(crate) fn run() -> Result<()> {
    let root = command::root();
    let mut files = Vec::new();
    for folder in ["crates", "tests", "xtask", "fuzz"] {
        collect(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut findings = Vec::new();
    for file in &files {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(file).display();
        let lines = text.lines().count();
        if lines > FILE_LINES {
            findings.push(format!("{name}: {lines} lines"));
        }
        for (line, function, length) in long_functions(&text) {
            findings.push(format!("{name}:{line}: {function} has {length} lines"));
        }
    }
    eprintln!(
        "--- sizes: {} files; beyond {FUNCTION_LINES} lines a function or {FILE_LINES} a file: {}",
        files.len(),
        findings.len()
    );
    for finding in findings {
        eprintln!("    {finding}");
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let entries = folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Line, name and length of each function beyond the limit.
///
/// The code is formatted by rustfmt, so a function ends at the first line that is its own
/// indentation and a closing brace; nothing more needs to be parsed.
fn long_functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let closing = format!("{}}}", &line[..indent]);
        let ends = |line: &&str| **line == closing || line.trim_end().ends_with(';');
        let mut after = lines[start..].iter();
        // A declaration ends with a semicolon before a body opens.
        let body = after.position(|line| line.ends_with('{') || ends(line));
        if body.is_none_or(|body| !lines[start + body].ends_with('{')) {
            continue;
        }
        if let Some(end) = lines[start..].iter().position(|line| *line == closing)
            && end + 1 > FUNCTION_LINES
        {
            found.push((start + 1, name.to_owned(), end + 1));
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    const BEFORE: [&str; 5] = ["const", "async", "unsafe", "extern", "default"];
    let mut words = line.split_whitespace();
    loop {
        let word = words.next()?;
        if word == "fn" {
            let name = words.next()?;
            return name.split(['(', '<']).next();
        }
        if !word.starts_with("pub") && !BEFORE.contains(&word) && !word.starts_with("\"C") {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_recognised() {
        assert_eq!(function_name("    pub(crate) async fn go<T>(x: T) {"), Some("go"));
        assert_eq!(function_name("unsafe extern \"C\" fn handler() {"), Some("handler"));
        assert_eq!(function_name("// fn in a comment"), None);
        assert_eq!(function_name("let x = fn_name();"), None);
    }

    #[test]
    fn only_the_long_ones_are_told() {
        let body = "        work();\n".repeat(FUNCTION_LINES);
        let text = format!(
            "trait T {{\n    fn declared(&self);\n}}\nfn short() {{\n    if x {{\n    }}\n}}\nmod m {{\n    \
             fn long(\n        a: u8,\n    ) {{\n{body}    }}\n}}\n"
        );
        assert_eq!(long_functions(&text), [(9, "long".to_owned(), FUNCTION_LINES + 4)]);
    }
}
