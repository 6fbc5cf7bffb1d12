//! One file for each command.

pub(crate) mod blob;
pub(crate) mod bundle;
mod cancel;
mod coordinator;
mod demo;
mod deploy;
mod drain;
mod invite;
mod jobs;
mod node;
mod nodes;
pub(crate) mod pack;
pub(crate) mod publisher;
mod run;
mod schema;
pub(crate) mod workspace;

use std::fmt::Display;
use std::str::FromStr;

use crate::args::{Arguments, Command, ToolArguments};
use crate::client::Client;
use crate::failure::Failure;
use crate::settings::{ClientSettings, SettingsFile, check_environment};

/// Carries out what was typed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    check_environment()?;
    let file = SettingsFile::load(arguments.config.as_deref())?;
    match arguments.command {
        Command::Demo(arguments) => demo::demo(arguments).await,
        Command::Coordinator(arguments) => coordinator::coordinator(arguments, file).await,
        Command::Node(arguments) => node::node(arguments, file).await,
        Command::Invite(arguments) => invite::invite(&arguments, &file).await,
        Command::Deploy(arguments) => deploy::deploy(&arguments, &file).await,
        Command::Run(arguments) => run::run(&arguments, &file).await,
        Command::Jobs(arguments) => jobs::jobs(&arguments, &file).await,
        Command::Nodes(arguments) => nodes::nodes(&arguments, &file).await,
        Command::Cancel(arguments) => cancel::cancel(&arguments, &file).await,
        Command::Drain(arguments) => drain::set_draining(&arguments, &file, true).await,
        Command::Undrain(arguments) => drain::set_draining(&arguments, &file, false).await,
        Command::Schema(arguments) => schema::schema(&arguments),
        Command::Pack(arguments) => pack::pack(&arguments).await,
        Command::Bundle(command) => bundle::bundle(&command),
        Command::Workspace(command) => workspace::workspace(&command).await,
        Command::Publisher(command) => publisher::publisher(&command),
        Command::Blob(command) => blob::blob(command, &file).await,
    }
}

/// The farm that a tool talks to, and whether to answer in JSON.
fn connect(tool: &ToolArguments, file: &SettingsFile) -> (Client, bool) {
    let settings = ClientSettings::resolve(tool, file);
    (Client::new(&settings), settings.json)
}

/// A text of an answer, or nothing.
fn text<'a>(value: &'a serde_json::Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A ticket of either kind: the word itself, or `@FILE` that holds it.
fn read_ticket<T>(word: &str) -> Result<T, Failure>
where
    T: FromStr<Err: Display>,
{
    let text = match word.strip_prefix('@') {
        None => word.to_owned(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| Failure::Ticket(format!("ticket file `{path}` cannot be read: {error}")))?,
    };
    text.parse().map_err(|error: T::Err| Failure::Ticket(error.to_string()))
}

/// Resolves when the person or the system asks the process to end.
async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}
