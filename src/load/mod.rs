//! stub
use clap::Args;
/// stub
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {}
/// stub
pub async fn run(_args: LoadArgs, _source: feedmill_connectors::postgres::Source, _settings: &crate::config::Settings) -> anyhow::Result<()> { Ok(()) }
