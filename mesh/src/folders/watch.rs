//! Changes in model folders as the system tells them, so that they are looked at without waiting.
//!
//! It is a help and no more: a system that has no watches left, or a network's folder that tells nothing, is
//! looked at every few minutes all the same. Not here: what changed; the look finds that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::paths::{self, is_list};

/// How long nothing must change until it is looked at: a file that is being written is not hashed in
/// between.
const QUIET: Duration = Duration::from_secs(1);

/// Watches folders for changes.
pub(super) struct FolderWatch {
    /// `None` where the system gives none.
    watcher: Option<RecommendedWatcher>,
    changed: watch::Receiver<()>,
    /// Held, so that the receiver never ends.
    _sender: watch::Sender<()>,
    is_complained: bool,
}

impl FolderWatch {
    pub(super) fn new() -> Self {
        let (sender, changed) = watch::channel(());
        let telling = sender.clone();
        let tell = move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_change(&event)) {
                telling.send_replace(());
            }
        };
        // As a look does, it does not leave the folder.
        let config = Config::default().with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(tell, config);
        let watcher = watcher.inspect_err(|error| warn!(%error, "model folders are not watched")).ok();
        Self { watcher, changed, _sender: sender, is_complained: false }
    }

    /// Watches these, also those that appeared or were replaced since it was called last.
    pub(super) async fn follow(self, roots: &[PathBuf]) -> Self {
        let roots = roots.to_owned();
        // Every folder in them is looked up.
        let following = spawn_blocking(move || {
            let mut watch = self;
            for root in &roots {
                watch.follow_one(root);
            }
            watch
        });
        match following.await {
            Ok(watch) => watch,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn follow_one(&mut self, root: &Path) {
        let Some(watcher) = &mut self.watcher else { return };
        // What cannot be read is told by the look.
        let Ok(root) = std::fs::canonicalize(root) else { return };
        let Ok(folders) = paths::folders_of(&root) else { return };
        let list = is_list(&root).then_some((&root, RecursiveMode::NonRecursive));
        for (path, mode) in folders.iter().map(|folder| (folder, RecursiveMode::Recursive)).chain(list) {
            match watcher.watch(path, mode) {
                Ok(()) => {}
                Err(error) if self.is_complained => debug!(path = %path.display(), %error, "not watched"),
                Err(error) => {
                    warn!(path = %path.display(), %error, "changes of models are noticed late");
                    self.is_complained = true;
                }
            }
        }
    }

    /// Waits until something changed, and then nothing for a moment.
    pub(super) async fn settled(&mut self) {
        // An error would be the end of the sender, which is held here.
        let _ = self.changed.changed().await;
        while timeout(QUIET, self.changed.changed()).await.is_ok() {}
    }
}

/// Whether a look may find something else than before. Reading is none: a look itself does that.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, ModifyKind, RemoveKind};

    use super::*;

    #[test]
    fn reading_is_no_change_and_anything_else_is() {
        let check = |kind, expected| assert_eq!(is_change(&Event::new(kind)), expected, "{kind:?}");
        check(EventKind::Access(AccessKind::Open(AccessMode::Any)), false);
        check(EventKind::Access(AccessKind::Close(AccessMode::Read)), false);
        check(EventKind::Access(AccessKind::Close(AccessMode::Write)), true);
        check(EventKind::Create(CreateKind::File), true);
        check(EventKind::Modify(ModifyKind::Any), true);
        check(EventKind::Remove(RemoveKind::Folder), true);
        // Events were lost.
        check(EventKind::Other, true);
    }
}
