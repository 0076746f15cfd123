//! Echo server on Tokio: one task per connection, on the current-thread runtime (one core, like every other server).
//!
//! Usage: echo_tokio HOST PORT BUFFER

use std::env::args;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn handle(mut stream: TcpStream, size: usize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; size];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n]).await?;
    }
}

async fn serve(address: &str, size: usize) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(handle(stream, size));
    }
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = args().collect();
    let address = format!("{}:{}", args[1], args[2]);
    let size = args[3].parse().expect("BUFFER is a number");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(serve(&address, size))
}
