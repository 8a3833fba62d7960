import { type LayerEntry, layoutOf } from './image.ts';

/**
 * The image of `templates/container`, which works at once and needs no tools to be made: one program for Linux on amd64 without libraries. It writes
 * `{"received":`, its standard input and `}`.
 */
export function tinyImage(): Record<string, Uint8Array> {
  const program: LayerEntry = { path: 'bin/answer', content: elf(), mode: 0o755 };
  return layoutOf({ layers: [{ entries: [program] }], config: { Entrypoint: ['/bin/answer'] }, architecture: 'amd64' });
}

const ADDRESS = 0x40_0000;
const HEADERS = 64 + 56;

/** A file of the Executable and Linkable Format with one segment: headers, code, texts. */
function elf(): Uint8Array {
  const before = Buffer.from('{"received":');
  const after = Buffer.from('}\n');
  const code = (beforeAt: number, afterAt: number) =>
    Buffer.from(
      [
        write(beforeAt, before.length),
        '4881ec00000100', // sub rsp, 0x10000
        '31c0', // again: xor eax, eax        read
        '31ff', // xor edi, edi               standard input
        '4889e6', // mov rsi, rsp
        'ba00000100', // mov edx, 0x10000
        '0f05', // syscall
        '85c0', // test eax, eax
        '7e10', // jle end
        '89c2', // mov edx, eax
        'b801000000', // mov eax, 1           write
        'bf01000000', // mov edi, 1           standard output
        '0f05', // syscall
        'ebe0', // jmp again
        write(afterAt, after.length), // end:
        'b83c000000', // mov eax, 60          exit
        '31ff', // xor edi, edi
        '0f05', // syscall
      ].join(''),
      'hex',
    );
  const textAt = ADDRESS + HEADERS + code(0, 0).length;
  const body = Buffer.concat([code(textAt, textAt + before.length), before, after]);
  const header = Buffer.alloc(HEADERS);
  header.write('7f454c46020101', 0, 'hex');
  header.writeUInt16LE(2, 16); // an executable
  header.writeUInt16LE(62, 18); // for x86-64
  header.writeUInt32LE(1, 20);
  header.writeBigUInt64LE(BigInt(ADDRESS + HEADERS), 24); // where it starts
  header.writeBigUInt64LE(64n, 32); // where the segments are listed
  header.writeUInt16LE(64, 52);
  header.writeUInt16LE(56, 54);
  header.writeUInt16LE(1, 56);
  header.writeUInt32LE(1, 64); // loaded
  header.writeUInt32LE(5, 68); // readable, executable
  header.writeBigUInt64LE(BigInt(ADDRESS), 80);
  header.writeBigUInt64LE(BigInt(ADDRESS), 88);
  header.writeBigUInt64LE(BigInt(HEADERS + body.length), 96);
  header.writeBigUInt64LE(BigInt(HEADERS + body.length), 104);
  header.writeBigUInt64LE(0x1000n, 112);
  return Buffer.concat([header, body]);
}

/** Writes what lies at an address to standard output. */
function write(address: number, length: number): string {
  const word = (value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return bytes.toString('hex');
  };
  // mov eax, 1; mov edi, 1; mov esi, address; mov edx, length; syscall
  return `b801000000bf01000000be${word(address)}ba${word(length)}0f05`;
}
