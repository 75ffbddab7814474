//! `moat/hello`: prints what a process sees from inside, beside what the host sees.
//!
//! One static program without dependencies; it is the whole image. The host's values come in an environment variable,
//! see [`facts`].
#![allow(clippy::print_stdout, reason = "this is what the program is for")]
#![allow(dead_code, unreachable_pub, reason = "the module is the library's, too")]

mod facts;

use facts::{Fact, VARIABLE, collect, from_text, to_text, value, verdict};

/// What makes it print no table but the facts alone, for another program.
const FACTS: &str = "--facts";

/// The widest value that is shown; a longer one is cut.
const WIDTH: usize = 38;

fn main() {
    let here = collect();
    if std::env::args().nth(1).is_some_and(|word| word == FACTS) {
        print!("{}", to_text(&here));
        return;
    }
    let host = from_text(&std::env::var(VARIABLE).unwrap_or_default());
    println!("Hello from Moat!\n");
    println!("{}\n", verdict(&here, &host));
    print!("{}", table(&here, &host));
    println!("\nEach line is read from /proc or /sys; = marks what is the same on both sides.");
}

fn table(here: &[Fact], host: &[Fact]) -> String {
    let mut text = row("", "inside", "", "on the host");
    text.push_str(&row("", &"-".repeat(WIDTH), "", &"-".repeat(WIDTH)));
    for fact in here {
        let other = value(host, &fact.name);
        let mark = if fact.value == other && !other.is_empty() { "=" } else { " " };
        text.push_str(&row(&fact.name, shown(&fact.value), mark, shown(other)));
    }
    text
}

fn row(name: &str, inside: &str, mark: &str, outside: &str) -> String {
    let line = format!("{name:<16}  {:<WIDTH$} {mark:1} {}", cut(inside), cut(outside));
    format!("{}\n", line.trim_end())
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "?" } else { value }
}

fn cut(text: &str) -> String {
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    let kept: String = text.chars().take(WIDTH - 3).collect();
    format!("{kept}...")
}
