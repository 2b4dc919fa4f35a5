#![no_main]

httpfstream_fuzz::target!(client_append);
