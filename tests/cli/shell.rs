//! What helps on a command line: help, completions, manual pages.

use std::process::Command;

use moat_tests::Moat;

#[test]
fn completions_are_accepted_by_their_shells() {
    let moat = Moat::empty();
    for shell in ["bash", "zsh", "fish"] {
        let script = moat.call(&["completions", shell]);
        for word in ["system", "security-opt", "volumes-from"] {
            assert!(script.success().contains(word), "{word} for {shell}");
        }
    }
    let script = moat.path("bash").display().to_string();
    std::fs::write(&script, moat.call(&["completions", "bash"]).success()).unwrap();
    let done = Command::new("bash").args(["-n", &script]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let typed = format!(
        "source {script}; COMP_WORDS=(moat syst); COMP_CWORD=1; _moat moat syst moat; echo \"${{COMPREPLY[@]}}\""
    );
    let done = Command::new("bash").args(["-c", &typed]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&done.stdout), "system\n", "{done:?}");
}

#[test]
fn every_command_has_a_manual_page() {
    let moat = Moat::empty();
    moat.call(&["man", &moat.path("man").display().to_string()]).success();
    for page in
        ["moat", "moat-run", "moat-ps", "moat-container-ls", "moat-volume-create", "moat-system-check"]
    {
        let text = std::fs::read_to_string(moat.path(&format!("man/{page}.1"))).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    let run = std::fs::read_to_string(moat.path("man/moat-run.1")).unwrap();
    assert!(run.contains("security\\-opt"), "{run}");
}

#[test]
fn help_lists_commands_and_flags() {
    let moat = Moat::empty();
    let help = moat.call(&["--help"]);
    for word in ["run", "exec", "images", "container", "volume", "system"] {
        assert!(help.success().lines().any(|line| line.trim_start().starts_with(word)), "{word}");
    }
    let help = moat.call(&["run", "--help"]);
    for flag in ["--publish", "--memory", "--health-cmd", "--cap-add", "--detach-keys", "-h, --hostname"] {
        assert!(help.success().contains(flag), "{flag}");
    }
    assert_eq!(moat.call(&["container", "list", "--help"]).code, 0);
}
