//! A session at a terminal, driven through tmux: job control, sizes, leaving and coming back.

use std::process::Command;

use moat_tests::{Moat, wait_until};

/// A tmux server of the test's own, with one window of 100 columns and 30 rows.
struct Screen {
    socket: String,
}

impl Screen {
    fn new(moat: &Moat) -> Self {
        let screen = Self { socket: moat.path("tmux").display().to_string() };
        let size = ["new-session", "-d", "-s", "s", "-x", "100", "-y", "30", "env", "PS1=host> ", "sh"];
        screen.tmux(&size);
        wait_until(|| screen.shows("host>"));
        screen
    }

    fn tmux(&self, args: &[&str]) -> String {
        let done =
            Command::new("tmux").args(["-f", "/dev/null", "-S", &self.socket]).args(args).output().unwrap();
        assert!(done.status.success(), "{args:?}: {done:?}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    fn type_line(&self, line: &str) {
        self.tmux(&["send-keys", "-t", "s", "-l", line]);
        self.press("Enter");
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", "-t", "s", key]);
    }

    fn text(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "s"])
    }

    fn shows(&self, wanted: &str) -> bool {
        self.text().lines().any(|line| line.contains(wanted))
    }

    /// Waits for a line that begins with the prompt; the line that was typed holds it, too.
    fn wait_for_prompt(&self, prompt: &str) {
        wait_until(|| self.text().lines().any(|line| line.starts_with(prompt)));
    }

    /// Gives the window a size and waits until the program in it has got that size, which takes its time.
    fn resize(&self, columns: &str, rows: &str) {
        self.tmux(&["resize-window", "-t", "s", "-x", columns, "-y", rows]);
        let line = format!(
            "until stty size | grep -q '^{rows} {columns}$'; do sleep 0.1; done; stty size | tr ' ' x"
        );
        self.type_line(&line);
        self.wait_for(&format!("{rows}x{columns}"));
    }

    fn wait_for(&self, wanted: &str) {
        wait_until(|| self.shows(wanted));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The server ends with its only session, if it is not gone already.
        let _ = Command::new("tmux").args(["-S", &self.socket, "kill-server"]).output();
    }
}

#[test]
fn a_session() {
    let moat = Moat::new();
    let screen = Screen::new(&moat);
    let program = format!("{} --root {}", moat.program().display(), moat.root().display());
    screen.type_line(&format!("M='{program}'"));
    screen.type_line("$M run -it --network none --name sess -e PS1='in> ' busybox sh");
    screen.wait_for_prompt("in>");

    // The size is the screen's, and follows it.
    screen.type_line("stty size | tr ' ' x");
    screen.wait_for("30x100");
    screen.resize("90", "25");

    // Keys reach the foreground job of the workload alone.
    screen.type_line("sleep 1000; echo interrupted");
    wait_until(|| moat.call(&["top", "sess"]).stdout.contains("sleep 1000"));
    screen.press("C-c");
    wait_until(|| !moat.call(&["top", "sess"]).stdout.contains("sleep 1000"));
    screen.type_line("sleep 2000");
    wait_until(|| moat.call(&["top", "sess"]).stdout.contains("sleep 2000"));
    screen.press("C-z");
    screen.wait_for("Stopped");
    screen.type_line("jobs; kill %1; fg");
    wait_until(|| !moat.call(&["top", "sess"]).stdout.contains("sleep 2000"));

    // Leaving does not end it; the shell's terminal is as it was.
    screen.press("C-p");
    screen.press("C-q");
    screen.type_line("echo back at $((40 + 2)); stty -a | grep -o ' icanon'");
    screen.wait_for("back at 42");
    screen.wait_for(" icanon");
    assert_eq!(moat.status("sess"), "running");

    // Coming back, a further process, and the exit code.
    screen.type_line("clear; $M attach sess; echo code $?");
    screen.type_line("echo $((6 * 7)) again");
    screen.wait_for("42 again");
    screen.type_line("exit 9");
    wait_until(|| moat.status("sess") == "exited");
    screen.wait_for("code 9");
}

#[test]
fn exec_with_a_terminal() {
    let moat = Moat::new();
    moat.start("box", &[], "while :; do sleep 1; done");
    let screen = Screen::new(&moat);
    let program = format!("{} --root {}", moat.program().display(), moat.root().display());
    screen.type_line(&format!("M='{program}'"));
    // The code is asked for on the same line: what is typed while the session ends is the session's.
    screen.type_line("$M exec -it -e PS1='in> ' box sh; echo code $?");
    screen.wait_for_prompt("in>");
    screen.type_line("stty size | tr ' ' x; tty");
    screen.wait_for("30x100");
    screen.wait_for("/dev/pts/");
    screen.resize("80", "20");
    screen.type_line("exit 3");
    screen.wait_for("code 3");
}

#[test]
fn a_terminal_that_takes_input_needs_one() {
    let moat = Moat::new();
    let refused = moat.run(&["--rm", "-it", "busybox", "true"]);
    // As Docker has it.
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("no terminal"), "{refused:?}");
    let alone = moat.run(&["--rm", "-t", "busybox", "sh", "-c", "test -t 1 && echo terminal"]);
    assert_eq!(alone.success(), "terminal\r\n");
}
