//! `comfy-farm blob pin` and `unpin`.

use mesh::control::Request;

use super::{PinArguments, ask};

pub(super) async fn set_pinned(arguments: &PinArguments, pinned: bool) -> anyhow::Result<()> {
    let hash = arguments.hash;
    ask(&arguments.store, Request::Pin { hash, pinned }).await?;
    println!("{hash} is {}", if pinned { "pinned" } else { "no longer pinned" });
    Ok(())
}
