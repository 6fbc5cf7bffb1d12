//! The `comfy-farm` binary: parse, set up logging, run one command, print the error once.

mod args;
mod client;
mod commands;
mod environment;
mod failure;
mod picture;
mod settings;
mod show;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    show::end_with_the_reader();
    show::set_up_logging(arguments.command.log_default());
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&error.into()),
    };
    match runtime.block_on(commands::run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
