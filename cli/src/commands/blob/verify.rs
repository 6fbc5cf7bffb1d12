//! `comfy-farm blob verify`.

use anyhow::bail;
use mesh::control::{Reply, Request};
use serde_json::json;

use super::{VerifyArguments, ask};
use crate::failure::Failure;
use crate::show;

pub(super) async fn verify(arguments: &VerifyArguments) -> anyhow::Result<()> {
    let request = Request::Verify { hash: arguments.hash };
    let Reply::Verified(verified) = ask(&arguments.store, request).await? else {
        bail!("the process answered something else: it may be of another version");
    };
    if arguments.json {
        show::json(&json!(verified));
    } else {
        println!("{} blobs are what their name says", verified.good);
        verified.bad.iter().for_each(|hash| println!("{hash} was not, and is forgotten"));
    }
    match verified.bad.len() {
        0 => Ok(()),
        bad => Err(Failure::Damaged(format!("{bad} blobs were damaged or had gone")).into()),
    }
}
