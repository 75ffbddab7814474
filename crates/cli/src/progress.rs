//! How a pull, push, load or import goes: a bar for each layer on a terminal, a line for each elsewhere.

use std::collections::BTreeMap;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use moat_engine::image::{LayerProgress, Progress};

use crate::session::tell;

/// What is shown.
pub(crate) struct Bars {
    /// None where standard error is no terminal.
    screen: Option<MultiProgress>,
    layers: Mutex<BTreeMap<usize, Layer>>,
}

struct Layer {
    bar: ProgressBar,
    name: String,
    done: bool,
}

impl Bars {
    /// Begins with a title.
    pub(crate) fn new(title: &str) -> Self {
        tell(title);
        let screen = rustix::termios::isatty(rustix::stdio::stderr()).then(MultiProgress::new);
        Self { screen, layers: Mutex::default() }
    }

    /// Shows one thing that happened. It is called from several threads.
    pub(crate) fn show(&self, progress: Progress) {
        match progress {
            Progress::Layer { index, digest, state } => {
                let name: String = digest.hex().chars().take(12).collect();
                self.layer(index, name, state);
            }
            Progress::Retry { reason, after_ms } => {
                self.line(&format!("{reason}; trying again in {:.1} s", after_ms as f64 / 1000.0));
            }
            Progress::Note(text) => self.line(&text),
            _ => {}
        }
    }

    fn line(&self, text: &str) {
        match &self.screen {
            // A line that can not be shown must not stop the pull.
            Some(screen) => drop(screen.println(text)),
            None => tell(text),
        }
    }

    fn layer(&self, index: usize, name: String, state: LayerProgress) {
        let Ok(mut layers) = self.layers.lock() else { return };
        let layer = layers.entry(index).or_insert_with(|| self.begin(name));
        let bar = &layer.bar;
        let (message, finished) = match state {
            LayerProgress::Waiting => ("waiting", false),
            LayerProgress::Exists => ("already here", true),
            LayerProgress::Moving { done_bytes, total_bytes } => {
                bar.set_length(total_bytes.unwrap_or(done_bytes));
                bar.set_position(done_bytes);
                ("", false)
            }
            LayerProgress::Unpacked(_) => ("unpacked", false),
            LayerProgress::Done => ("done", true),
        };
        bar.set_message(message);
        if finished && !layer.done {
            layer.done = true;
            bar.finish();
            if self.screen.is_none() {
                tell(&format!("{}: {message}", layer.name));
            }
        }
    }

    fn begin(&self, name: String) -> Layer {
        let bar = match &self.screen {
            Some(screen) => screen.add(ProgressBar::new(0)),
            None => ProgressBar::hidden(),
        };
        let style = ProgressStyle::with_template(
            "{prefix}: [{bar:30}] {decimal_bytes:>9}/{decimal_total_bytes:9} {msg}",
        );
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(name.clone());
        Layer { bar, name, done: false }
    }

    /// Ends; after a failure the bars stay where they are.
    pub(crate) fn finish(&self, whole: bool) {
        let Ok(layers) = self.layers.lock() else { return };
        for layer in layers.values().filter(|layer| !layer.done) {
            match whole {
                true => layer.bar.finish(),
                false => layer.bar.abandon(),
            }
        }
    }
}
