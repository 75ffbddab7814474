//! `moat login` and `moat logout`.

use std::io::Read;

use clap::Args;
use moat_engine::image::{self, Credential, Credentials};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::pull;
use crate::failure::{Context, Failure, Result};
use crate::line::Verb;
use crate::session::{Session, print, tell};
use crate::terminal;

#[derive(Args, Debug)]
pub(crate) struct Login {
    /// Password; others can see it in the list of processes
    #[arg(short, long)]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// User
    #[arg(short, long)]
    username: Option<String>,
    /// Registry
    #[arg(default_value = "docker.io")]
    server: String,
}

impl Verb for Login {
    const NAME: &'static str = "login";
    const ABOUT: &'static str = "Keep a user and password for a registry";

    fn run(self, _: &Session) -> Result<u8> {
        let user = match (self.username, self.password_stdin) {
            (Some(user), _) if !user.is_empty() => user,
            (_, true) => return Err(Failure::new("--password-stdin needs --username")),
            _ => ask("Username: ", true)?,
        };
        let password = match (self.password, self.password_stdin) {
            (Some(_), true) => {
                return Err(Failure::new("--password and --password-stdin exclude each other"));
            }
            (Some(password), false) => {
                tell(
                    "moat: warning: others can see a password that is given by --password; use --password-stdin",
                );
                password
            }
            (None, true) => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context(|| "standard input")?;
                text.trim_end_matches(['\n', '\r']).to_owned()
            }
            (None, false) => ask("Password: ", false)?,
        };
        if password.is_empty() {
            return Err(Failure::new("the password is empty"));
        }
        let credential = Credential::Basic { user, password };
        image::login(&Credentials::of_user(), &pull::registries()?, &self.server, &credential)?;
        print("Login Succeeded\n")?;
        Ok(0)
    }
}

/// Asks on the terminal, with or without showing what is typed.
fn ask(what: &str, shown: bool) -> Result<String> {
    if !terminal::has_input() {
        return Err(Failure::new("standard input is no terminal to ask on")
            .hint("give --username, and the password with --password-stdin"));
    }
    let stdin = rustix::stdio::stdin();
    let before = tcgetattr(stdin).context(|| "the terminal")?;
    if !shown {
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin, OptionalActions::Drain, &quiet).context(|| "the terminal")?;
    }
    let mut answer = String::new();
    let read =
        print(what).and_then(|()| std::io::stdin().read_line(&mut answer).context(|| "standard input"));
    if !shown {
        tcsetattr(stdin, OptionalActions::Drain, &before).context(|| "the terminal")?;
        tell("");
    }
    read?;
    Ok(answer.trim_end_matches(['\n', '\r']).to_owned())
}

#[derive(Args, Debug)]
pub(crate) struct Logout {
    /// Registry
    #[arg(default_value = "docker.io")]
    server: String,
}

impl Verb for Logout {
    const NAME: &'static str = "logout";
    const ABOUT: &'static str = "Forget the user and password for a registry";

    fn run(self, _: &Session) -> Result<u8> {
        match image::logout(&Credentials::of_user(), &self.server)? {
            true => print(&format!("Removing login credentials for {}\n", self.server))?,
            false => print(&format!("Not logged in to {}\n", self.server))?,
        }
        Ok(0)
    }
}
