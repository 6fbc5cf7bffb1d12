//! The models of a workspace: each by its hashes, from peers and from the internet, and linked at its recorded place.
//!
//! Not here: how a blob comes.

use std::path::Path;

use mesh::fetch::{FetchFileError, OriginFile, Progress};
use mesh::store::{BlobHold, BlobStore, StoreError};
use protocol::{BlobName, BlobRef, FileRef, LockedModel, Lockfile, PrepareStep, Resolution, error_chain};
use tokio::sync::watch;

use super::files::Files;
use super::{disk_is_full, failed, tells_of_full_disk, total};
use crate::os;
use crate::workspace::prepare::BuildError;

impl Files<'_> {
    /// Has every model of a lockfile here, and at its place below a folder. One that does not come keeps no other from
    /// coming, and all that did not are told together.
    pub(super) async fn models(
        &self,
        lockfile: &Lockfile,
        known: &Resolution,
        folder: &Path,
    ) -> Result<Vec<BlobHold>, BuildError> {
        std::fs::create_dir_all(folder).map_err(failed)?;
        let models: Vec<&LockedModel> = lockfile.models.iter().filter(|model| !model.disabled).collect();
        let total = total(models.iter().map(|model| model.size));
        self.steps.expect(PrepareStep::Models, total);
        let (mut holds, mut lacking) = (Vec::new(), Vec::new());
        for model in models {
            match self.model_in_place(model, known, folder).await {
                Ok(hold) => holds.push(hold),
                // The others would find no room either.
                Err(BuildError::Failed(reason)) if !tells_of_full_disk(&reason) => lacking.push(reason),
                Err(error) => return Err(error),
            }
        }
        match lacking.len() {
            0 => Ok(holds),
            1 => Err(BuildError::Failed(lacking.remove(0))),
            count => Err(BuildError::Failed(format!("{count} models are lacking:\n{}", lacking.join("\n")))),
        }
    }

    /// Has one here, and at its place.
    async fn model_in_place(
        &self,
        model: &LockedModel,
        known: &Resolution,
        folder: &Path,
    ) -> Result<BlobHold, BuildError> {
        let (blob, hold) = self.model(model, known).await?;
        let target = self.reach.exchange.store().path_of(blob.hash);
        let target = target
            .ok_or_else(|| BuildError::Failed(format!("model `{}` was removed meanwhile", model.path)))?;
        os::file::link(&target, &folder.join(model.path.as_str())).map_err(|source| {
            BuildError::Failed(format!("model `{}` cannot be put at its place: {source}", model.path))
        })?;
        Ok(hold)
    }

    async fn model(
        &self,
        model: &LockedModel,
        known: &Resolution,
    ) -> Result<(BlobRef, BlobHold), BuildError> {
        let named = model.blob.map(|hash| BlobRef { hash, size: model.size });
        let store = self.reach.exchange.store();
        if !model.share {
            // Also where it is here already: the lockfile's word holds for this node from now on.
            let names = named.map(|blob| blob.hash.into()).into_iter();
            let names = names.chain(model.sha256.map(BlobName::Sha256));
            store.keep_private(names.collect()).await.map_err(failed)?;
        }
        let Some(sha256) = model.sha256 else {
            let Some(blob) = named.or_else(|| by_place(store, model)) else {
                return Err(BuildError::Failed(format!(
                    "model `{}`: it has no hash, so no other node and no URL can give it: put it into a model folder of \
                     this node (`--models`) under this name and with its {} bytes",
                    model.path, model.size
                )));
            };
            if !model.share && store.check(blob.hash).await.map_err(failed)? != Some(blob) {
                return Err(not_given(model));
            }
            let hold = self.blob(blob, PrepareStep::Models).await.map_err(|error| match error {
                BuildError::Failed(reason) => {
                    BuildError::Failed(format!("model `{}` did not come: {reason}", model.path))
                }
                error => error,
            })?;
            return Ok((blob, hold));
        };
        // What it came to elsewhere.
        let said =
            known.model(sha256).filter(|said| model.share && said.size == model.size).map(|said| said.hash);
        let wanted = OriginFile {
            file: FileRef { sha256, size: model.size },
            blob: model.blob.or(said),
            // The publisher signed both names.
            trusted_blake3: model.blob.is_some(),
            urls: model.sources.iter().map(|source| source.url.to_string()).collect(),
            share: model.share,
            in_order: false,
        };
        let exchange = &self.reach.exchange;
        // Under this name until the other one is known.
        let _held = exchange.store().hold(sha256);
        let (part, (sender, progress)) =
            (self.steps.part(PrepareStep::Models), watch::channel(Progress::default()));
        let fetching = part.count(progress, self.fetch(&wanted, &sender));
        let fetched = self.cancel.run_until_cancelled(fetching).await.ok_or(BuildError::Canceled)?;
        let blob = match fetched {
            Err(FetchFileError::NoSource { tried, .. }) if !model.share && tried.is_empty() => {
                return Err(not_given(model));
            }
            fetched => fetched.map_err(|error| did_not_come(model, &error))?.blob,
        };
        part.set(model.size);
        Ok((blob, exchange.store().hold(blob.hash)))
    }
}

/// The file of a model without a hash: the only one of its name and size in this node's model folders. Nothing proves
/// that it is the one its author had.
pub(in crate::workspace) fn by_place(store: &BlobStore, model: &LockedModel) -> Option<BlobRef> {
    let is_nameless = model.sha256.is_none() && model.blob.is_none();
    let name = model.path.as_str().strip_prefix("models/").filter(|_| is_nameless)?;
    match store.in_place_as(name, model.size).as_slice() {
        [only] => Some(*only),
        _ => None,
    }
}

/// A model that came from nobody, or whose bytes are others.
fn did_not_come(model: &LockedModel, error: &FetchFileError) -> BuildError {
    let hint = match error {
        FetchFileError::NoSource { .. } | FetchFileError::WrongSha256 { .. } => {
            ": put it into a model folder of any node (`--models`), or record an address that has it"
        }
        _ => "",
    };
    let reason = format!("model `{}` did not come: {}{hint}", model.path, error_chain(error));
    match error {
        FetchFileError::Store(StoreError::NoRoom { .. }) => disk_is_full(&reason),
        _ => BuildError::Failed(reason),
    }
}

/// A model that no peer may give, which is not here, and for which no URL is named.
fn not_given(model: &LockedModel) -> BuildError {
    let path = &model.path;
    BuildError::Failed(format!(
        "model `{path}`: it is marked not to be shared, so no peer gives it, and its lockfile names no URL: put it into \
         a model folder of this node (`--models`)"
    ))
}

#[cfg(test)]
mod tests {
    use protocol::Sha256;
    use serde_json::json;

    use super::*;

    #[test]
    fn model_of_other_bytes_is_told_with_both_hashes_who_gave_it_and_what_to_do() {
        let (sha256, found) = (Sha256([1; 32]), Sha256([2; 32]));
        let model =
            json!({ "path": "models/vae/a.safetensors", "size": 3, "sha256": sha256, "disabled": false });
        let model: LockedModel = serde_json::from_value(model).expect("a model");
        let from = vec!["https://models.example.org/a".to_owned()];
        let error = FetchFileError::WrongSha256 { file: FileRef { sha256, size: 3 }, found, from };
        let BuildError::Failed(reason) = did_not_come(&model, &error) else {
            panic!("it may be tried again")
        };
        let expected = format!(
            "model `models/vae/a.safetensors` did not come: wrong SHA-256 `{found}` in place of `{sha256}` from \
             https://models.example.org/a: put it into a model folder of any node (`--models`), or record an address \
             that has it"
        );
        assert_eq!(reason, expected);

        let full = FetchFileError::Store(StoreError::NoRoom { wanted: 3, free: 2, folder: "/blobs".into() });
        let BuildError::Failed(reason) = did_not_come(&model, &full) else { panic!("it may be tried again") };
        assert!(reason.starts_with("the disk is full: model `models/vae/a.safetensors`"), "{reason}");
        assert!(reason.contains("`comfy-farm workspace rm`") && tells_of_full_disk(&reason), "{reason}");
    }
}
