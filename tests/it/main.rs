//! The farm as its users meet it: real processes, real sockets, real clients.

mod api;
mod blobs;
mod blobs_farm;
mod blobs_store;
mod browser;
mod clients;
mod command_line;
mod demo;
mod deploy_models;
mod guards;
mod house;
mod kills;
mod mirrors;
mod namespaces;
mod openapi;
mod owner;
mod pack;
mod trace;
mod people;
mod newer_format;
mod previews;
mod progress;
mod real_comfyui;
mod slots;
mod sources;
mod workspaces;
