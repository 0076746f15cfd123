//! Echo server on Monoio: one task per connection, on its io_uring driver.
//!
//! Usage: echo_monoio HOST PORT BUFFER

use std::env::args;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};

async fn handle(mut stream: TcpStream, size: usize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer: Vec<u8> = Vec::with_capacity(size);
    let mut result;
    loop {
        (result, buffer) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        (result, buffer) = stream.write_all(buffer).await;
        result?;
        buffer.clear();
    }
}

async fn serve(address: String, size: usize) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    loop {
        let (stream, _) = listener.accept().await?;
        monoio::spawn(handle(stream, size));
    }
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = args().collect();
    let address = format!("{}:{}", args[1], args[2]);
    let size = args[3].parse().expect("BUFFER is a number");
    monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()?.block_on(serve(address, size))
}
