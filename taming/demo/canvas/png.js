// Label numbers to PNG and back. Browsers may change what is read back from a <canvas> (color
// management, protection against tracking), so that the numbers never go through one.

const CRC = new Uint32Array(256).map((_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit += 1) {
    value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  }
  return value;
});

function crc(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) {
    value = CRC[(value ^ byte) & 255] ^ (value >>> 8);
  }
  return (value ^ 0xffffffff) >>> 0;
}

async function through(bytes, stream) {
  const piped = new Blob([bytes]).stream().pipeThrough(stream);
  return new Uint8Array(await new Response(piped).arrayBuffer());
}

const BLOCK = 65535; // bytes that a block of deflate can store

/** Bytes as zlib has them, not made smaller. */
function stored(bytes) {
  const blocks = Math.max(1, Math.ceil(bytes.length / BLOCK));
  const packed = new Uint8Array(2 + 5 * blocks + bytes.length + 4);
  const view = new DataView(packed.buffer);
  packed.set([0x78, 0x01]);
  let [place, low, high] = [2, 1, 0];
  for (let block = 0; block < blocks; block += 1) {
    const part = bytes.subarray(block * BLOCK, (block + 1) * BLOCK);
    packed[place] = block === blocks - 1 ? 1 : 0;
    view.setUint16(place + 1, part.length, true);
    view.setUint16(place + 3, part.length ^ 0xffff, true);
    packed.set(part, place + 5);
    place += 5 + part.length;
  }
  for (const byte of bytes) { // Adler-32
    low = (low + byte) % 65521;
    high = (high + low) % 65521;
  }
  view.setUint32(place, high * 65536 + low);
  return packed;
}

function chunk(name, data) {
  const bytes = new Uint8Array(12 + data.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

function header(width, height, deep) {
  const data = new Uint8Array(13);
  const view = new DataView(data.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  data[8] = deep ? 16 : 8; // bits; the color type that follows is 0, gray
  return chunk("IHDR", data);
}

/** The rows as PNG has them: a filter's number, here 0 for none, before each. */
function rows(values, width, height, deep) {
  const stride = 1 + (deep ? 2 : 1) * width;
  const raw = new Uint8Array(stride * height);
  const view = new DataView(raw.buffer);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const value = values[y * width + x];
      if (deep) {
        view.setUint16(y * stride + 1 + 2 * x, value);
      } else {
        raw[y * stride + 1 + x] = value;
      }
    }
  }
  return raw;
}

function base64(bytes) {
  let text = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

const LARGE = 1 << 20; // bytes that are worth the time of making them fewer

/**
 * A gray PNG, base64, of numbers row by row; `deep` with 16 bits instead of 8. A promise of it if
 * it is large; else it is there at once, before whatever else the page is about to do.
 */
export function encode(values, width, height, deep) {
  const raw = rows(values, width, height, deep);
  const png = (packed) => pngOf(packed, width, height, deep);
  if (raw.length <= LARGE) {
    return png(stored(raw));
  }
  return through(raw, new CompressionStream("deflate")).then(png);
}

function pngOf(packed, width, height, deep) {
  const parts = [
    Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10),
    header(width, height, deep),
    chunk("IDAT", packed),
    chunk("IEND", new Uint8Array(0)),
  ];
  const png = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) {
    png.set(part, place);
    place += part.length;
  }
  return base64(png);
}

/** Numbers of 16 bits, little-endian, that were packed by zlib and are base64. */
export async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const bytes = await through(packed, new DecompressionStream("deflate"));
  const view = new DataView(bytes.buffer);
  return Uint16Array.from({ length: bytes.length / 2 }, (_, n) => view.getUint16(2 * n, true));
}

/** Every number as a square of `cell` x `cell`. */
export function enlarge(values, width, height, cell) {
  if (cell === 1) {
    return values;
  }
  const large = new Uint16Array(width * height * cell * cell);
  for (let n = 0; n < large.length; n += 1) {
    const y = Math.floor(n / (width * cell));
    const x = n - y * width * cell;
    large[n] = values[Math.floor(y / cell) * width + Math.floor(x / cell)];
  }
  return large;
}

/** The number in the corner of every square of `cell` x `cell`; the reverse of `enlarge`. */
export function reduce(values, width, height, cell) {
  if (cell === 1) {
    return values;
  }
  const [columns, lines] = [width / cell, height / cell];
  return Uint16Array.from({ length: columns * lines }, (_, n) => {
    const y = Math.floor(n / columns);
    return values[y * cell * width + (n - y * columns) * cell];
  });
}
