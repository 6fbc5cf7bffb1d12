//! `comfy-farm publisher new` and `sign`.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;

use mesh::identity::Identity;
use protocol::{BundleLimits, PublisherKey, SignBundleError, error_chain, sign_bundle};
use serde_json::json;

use super::{NewArguments, SignArguments};
use crate::failure::Failure;
use crate::show;

pub(super) fn new(arguments: &NewArguments) -> anyhow::Result<()> {
    let key = public(&Identity::create(&arguments.output)?);
    match arguments.json {
        true => show::json(&json!({ "publisher": key, "file": arguments.output })),
        false => println!("{key}"),
    }
    Ok(())
}

pub(super) fn sign(arguments: &SignArguments) -> anyhow::Result<()> {
    let SignArguments { bundle, key, output, json } = arguments;
    let identity = Identity::load(key)?;
    let output = output.as_ref().unwrap_or(bundle);
    let fail = |path: &Path, error: &dyn std::error::Error| {
        Failure::Input(format!("`{}`: {}", path.display(), error_chain(error)))
    };
    let file = File::open(bundle).map_err(|error| fail(bundle, &error))?;
    let permissions = file.metadata().map_err(|error| fail(bundle, &error))?.permissions();
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let draft = tempfile::Builder::new().permissions(permissions).tempfile_in(folder);
    let draft = draft.map_err(|error| fail(output, &error))?;
    let (reader, writer) = (BufReader::new(file), BufWriter::new(draft.as_file()));
    let lockfile = sign_bundle(reader, &BundleLimits::default(), identity.signing_key(), writer);
    let lockfile = lockfile.map_err(|error| match &error {
        SignBundleError::Bundle(_) => fail(bundle, &error),
        SignBundleError::Write(_) => fail(output, &error),
    })?;
    draft.persist(output).map_err(|error| fail(output, &error.error))?;
    let (publisher, lockfile) = (public(&identity), lockfile.hash());
    match json {
        true => show::json(&json!({ "publisher": publisher, "lockfile": lockfile, "file": output })),
        false => println!("lockfile {lockfile} of `{}` is signed by publisher {publisher}", output.display()),
    }
    Ok(())
}

/// The half of a key that others know.
fn public(identity: &Identity) -> PublisherKey {
    PublisherKey(identity.peer().0)
}
