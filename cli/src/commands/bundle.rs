//! `comfy-farm bundle`: a bundle explained in words, without a farm; one file for each subcommand.

mod show;
mod verify;
mod diff;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use mesh::store::ByteSize;
use protocol::{
    BlobRef, Bundle, BundleLimits, CustomNode, GitUrl, PackagePin, Pin, RegistryPin, read_bundle,
};

use crate::failure::Failure;

/// More than the largest workflow that is read, so that a larger one is refused for its size.
pub(super) const MAX_WORKFLOW: u64 = 32 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Say what is in a bundle: versions, custom nodes, packages, models, inputs, and what was repaired.
    Show(BundleArguments),
    /// Check a bundle, and say what another machine could not rebuild from it. Ends with 7 where there is
    /// such.
    Verify(BundleArguments),
    /// Say how two bundles differ.
    Diff(DiffArguments),
}

#[derive(Debug, Args)]
pub(crate) struct BundleArguments {
    /// A bundle (`.cpack.zip`) or a `workflow_api.json`.
    pub(crate) file: PathBuf,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArguments {
    /// The older bundle or workflow.
    pub(crate) old: PathBuf,
    /// The newer one.
    pub(crate) new: PathBuf,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) fn bundle(command: &BundleCommand) -> anyhow::Result<()> {
    match command {
        BundleCommand::Show(arguments) => show::show(arguments),
        BundleCommand::Verify(arguments) => verify::verify(arguments),
        BundleCommand::Diff(arguments) => diff::diff(arguments),
    }
}

/// Reads a bundle or a bare workflow. Its parts are named and not kept.
pub(super) fn read(path: &Path) -> anyhow::Result<Bundle> {
    let shown = path.display();
    let file =
        File::open(path).map_err(|error| Failure::Input(format!("`{shown}` cannot be read: {error}")))?;
    let mut name = |_: &str, part: &mut dyn Read| BlobRef::of_reader(part);
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let bundle = if is_json {
        let mut bytes = Vec::new();
        file.take(MAX_WORKFLOW).read_to_end(&mut bytes)?;
        Bundle::from_workflow(&bytes, &mut name)
    } else {
        read_bundle(BufReader::new(file), &BundleLimits::default(), &mut name)
    };
    Ok(bundle.map_err(|error| Failure::Input(format!("`{shown}`: {}", protocol::error_chain(&error))))?)
}

/// What a bundle's API takes and gives, by the names.
pub(super) fn api(bundle: &Bundle) -> String {
    let interface = match bundle.interface() {
        Ok(interface) => interface,
        Err(error) => return format!("none: {error}"),
    };
    if interface.outputs.is_empty() {
        return "none yet: name it with `--input NAME=NODE.FIELD` and `--output NODE` as it is packed or deployed"
            .to_owned();
    }
    let inputs: Vec<&str> = interface.inputs.iter().map(|input| input.name.as_str()).collect();
    let outputs: Vec<&str> = interface.outputs.iter().map(|output| output.name.as_str()).collect();
    format!("{} -> {}", inputs.join(", "), outputs.join(", "))
}

/// A custom node as what it is called by, and the version that is pinned.
pub(super) fn name_and_version(node: &CustomNode) -> (String, String) {
    let disabled = |version: String, is_disabled: &bool| {
        if *is_disabled { format!("{version}, switched off") } else { version }
    };
    match node {
        CustomNode::Git { url, commit, mirrors, folder, disabled: off } => {
            let folder = folder.as_ref().map_or_else(String::new, |folder| format!(" as `{folder}`"));
            (format!("{url}{folder}"), disabled(format!("{commit}{}", also_at(mirrors)), off))
        }
        CustomNode::Registry { id, version } => (id.to_string(), version.to_string()),
        CustomNode::Carried { name, files, registry } => {
            let version = registry.as_ref().map_or_else(String::new, |RegistryPin { id, version }| {
                format!("{id} {version} of the registry, ")
            });
            let files = format!("{} as blob {}", ByteSize(files.size), files.hash.fmt_short());
            (name.to_string(), format!("{version}in the bundle, {files}"))
        }
        CustomNode::File { name, disabled: off } => {
            (name.to_string(), disabled("a single file".to_owned(), off))
        }
    }
}

/// Where else a commit is to be had, for the end of a line.
pub(super) fn also_at(mirrors: &[GitUrl]) -> String {
    mirrors.iter().map(|url| format!(", also at {url}")).collect()
}

/// What a package is pinned to.
fn pinned(package: &PackagePin) -> &str {
    match &package.pin {
        Pin::Version(version) => version.as_str(),
        Pin::Url(url) => url.as_str(),
        Pin::Git(url) => url.as_str(),
    }
}
