/**
 * The hot loops as one WebAssembly module, emitted by this file: there is no compiler in the build, and unrolled SHA-256 rounds are
 * regular enough to be generated. Everything here has a slow twin (`sha256.ts`, `space-graph.ts`) that the tests compare it with.
 *
 * A call should stay short (some milliseconds): V8 replaces the baseline code of a function only between calls.
 */
import { concat } from '../../base/bytes.ts';
import { IV, K } from './sha256.ts';

/** The part of the JavaScript interface that is used here; the type library of the platform lacks it. */
declare const WebAssembly: {
  readonly Memory: new (limits: { initial: number; maximum: number }) => { readonly buffer: ArrayBuffer };
  instantiate(bytes: Uint8Array, imports: object): Promise<{ readonly instance: { readonly exports: object } }>;
};

/** Memory below this address is the caller's scratch: states, and 32 zero bytes at {@link ZEROS}. */
export const KERNEL_BASE = 65_536;
/** 32 bytes that must stay zero. */
export const ZEROS = 1_024;
/** 32 bytes: the initial state of labels, eight words. */
export const LABEL_IV = 1_088;
/** 32 bytes: the state after the first block of the work message, eight words. */
export const MIDSTATE = 1_120;
/** 256 bytes each: the message words of a label's two blocks, round constants added. Worked out once, used in every iteration. */
const SCHEDULES = 1_152;

export interface Kernel {
  readonly memory: { readonly buffer: ArrayBuffer };
  /**
   * Tries `count` (a multiple of 4) nonces from `low` on; gives the offset of the first for which the first word of the hash has no
   * bit of `mask`, or -1. The message is the block behind {@link MIDSTATE}, then `high` and `low + offset`, big-endian.
   */
  search(high: number, low: number, count: number, mask: number): number;
  /**
   * Which labels the labels `from` to `to` (exclusive) are made of: two words for each at `table`, the far one of the same layer and the one
   * of the layer below. What does not exist (far for label 0, below in layer 1) is left as it was.
   */
  parents(layer: number, from: number, to: number, n: number, table: number): void;
  /**
   * Computes labels `from` to `to` (exclusive) of a layer into `current`; the 32 bytes before it are the label before the first.
   * `table` has for each the addresses of the far one and of the one below.
   */
  labels(layer: number, from: number, to: number, iterations: number, current: number, table: number): void;
  /** SHA-256 of each of `count` pairs of 32 bytes at `from`, written one after the other to `to`, which may be `from`. */
  pairs(from: number, to: number, count: number): void;
}

/** Instantiates with `pages` of 64 KiB. Takes some milliseconds; meant for workers. */
export async function openKernel(pages: number): Promise<Kernel> {
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
  const { instance } = await WebAssembly.instantiate(kernelModule(), { env: { memory } });
  const exported = instance.exports as unknown as Omit<Kernel, 'memory'>;
  const { search, parents, labels, pairs } = exported;
  return { memory, search, parents, labels, pairs };
}

type Code = readonly number[];

const I32 = 0x7f;
const I64 = 0x7e;
const V128 = 0x7b;

const get = (local: number): Code => [0x20, ...unsigned(local)];
const set = (local: number): Code => [0x21, ...unsigned(local)];
const tee = (local: number): Code => [0x22, ...unsigned(local)];
const i32 = (value: number): Code => [0x41, ...signed(BigInt(value | 0))];
const i64 = (value: bigint): Code => [0x42, ...signed(BigInt.asIntN(64, value))];
const load = (address: Code, offset: number): Code => [...address, 0x28, 2, ...unsigned(offset)];
const store = (address: Code, offset: number, value: Code): Code => [
  ...address,
  ...value,
  0x36,
  2,
  ...unsigned(offset),
];
const op = (...code: number[]) => code;
const ADD = 0x6a;
const SUB = 0x6b;
const AND = 0x71;
const OR = 0x72;
const XOR = 0x73;
const SHL = 0x74;
const SHR = 0x76;
const ROTL = 0x77;
const ROTR = 0x78;

/** The operations of SHA-256 over one word (i32) or over four lanes (v128). */
interface Lane {
  constant(value: number): Code;
  add(a: Code, b: Code): Code;
  xor(a: Code, b: Code): Code;
  shr(a: Code, bits: number): Code;
  /** Rotation right of a local. */
  rotr(local: number, bits: number): Code;
  choose(e: number, f: number, g: number): Code;
  majority(a: number, b: number, c: number): Code;
}

const scalar: Lane = {
  constant: i32,
  add: (a, b) => [...a, ...b, ADD],
  xor: (a, b) => [...a, ...b, XOR],
  shr: (a, bits) => [...a, ...i32(bits), SHR],
  rotr: (local, bits) => [...get(local), ...i32(bits), ROTR],
  choose: (e, f, g) => [...get(f), ...get(g), XOR, ...get(e), AND, ...get(g), XOR],
  majority: (a, b, c) => [...get(a), ...get(b), OR, ...get(c), AND, ...get(a), ...get(b), AND, OR],
};

const simd = (...code: number[]): Code => [0xfd, ...code.flatMap((part) => unsigned(part))];
const SPLAT = simd(0x11);
const BITSELECT = simd(0x52);
const lanes: Lane = {
  constant: (value) => {
    const bytes = [value & 255, (value >>> 8) & 255, (value >>> 16) & 255, value >>> 24];
    return [...simd(0x0c), ...bytes, ...bytes, ...bytes, ...bytes];
  },
  add: (a, b) => [...a, ...b, ...simd(0xae)],
  xor: (a, b) => [...a, ...b, ...simd(0x51)],
  shr: (a, bits) => [...a, ...i32(bits), ...simd(0xad)],
  rotr: (local, bits) => [
    ...[...get(local), ...i32(bits), ...simd(0xad)],
    ...[...get(local), ...i32(32 - bits), ...simd(0xab)],
    ...simd(0x50),
  ],
  choose: (e, f, g) => [...get(f), ...get(g), ...get(e), ...BITSELECT],
  // Where a and b differ, c decides.
  majority: (a, b, c) => [...get(c), ...get(a), ...get(a), ...get(b), ...simd(0x51), ...BITSELECT],
};

/** Where the 64 message words come from: sixteen locals, a constant block, or memory (constants added) at the address in a local. */
type Message = { readonly w: number } | { readonly words: readonly number[] } | { readonly at: number };

/** 64 rounds over the locals `s`..`s+7`; `t` is a spare local. The locals change roles instead of moving. */
function rounds(lane: Lane, s: number, t: number, message: Message): Code {
  const constants = 'words' in message ? expand(message.words) : [];
  return range(64, (i) => {
    const role = (j: number) => s + ((j - i) & 7);
    const [a, b, c, d, e, f, g, h] = [role(0), role(1), role(2), role(3), role(4), role(5), role(6), role(7)];
    const word =
      'words' in message
        ? lane.constant((K[i]! + constants[i]!) | 0)
        : 'at' in message
          ? load(get(message.at), i * 4)
          : [...nextWord(lane, message.w, i), ...lane.add(get(message.w + (i & 15)), lane.constant(K[i]!))];
    return [
      ...lane.add(lane.add(lane.add(word, get(h)), sigma(lane, e, 6, 11, 25)), lane.choose(e, f, g)),
      ...set(t),
      ...lane.add(get(d), get(t)),
      ...set(d),
      ...lane.add(lane.add(get(t), sigma(lane, a, 2, 13, 22)), lane.majority(a, b, c)),
      ...set(h),
    ];
  });
}

/** From word 16 on, replaces the oldest of the sixteen locals by word `i`. */
function nextWord(lane: Lane, w: number, i: number): Code {
  if (i < 16) return [];
  const at = (j: number) => w + (j & 15);
  const small = (local: number, first: number, second: number, shift: number) =>
    lane.xor(lane.xor(lane.rotr(local, first), lane.rotr(local, second)), lane.shr(get(local), shift));
  const old = lane.add(get(at(i)), small(at(i - 15), 7, 18, 3));
  return [...lane.add(lane.add(old, get(at(i - 7))), small(at(i - 2), 17, 19, 10)), ...set(at(i))];
}

function sigma(lane: Lane, local: number, first: number, second: number, third: number): Code {
  return lane.xor(lane.xor(lane.rotr(local, first), lane.rotr(local, second)), lane.rotr(local, third));
}

function expand(words: readonly number[]): readonly number[] {
  const rotr = (x: number, bits: number) => (x >>> bits) | (x << (32 - bits));
  const w = [...words];
  for (let i = 16; i < 64; i++) {
    const x = w[i - 15]!;
    const y = w[i - 2]!;
    const s0 = rotr(x, 7) ^ rotr(x, 18) ^ (x >>> 3);
    const s1 = rotr(y, 17) ^ rotr(y, 19) ^ (y >>> 10);
    w.push((w[i - 16]! + s0 + w[i - 7]! + s1) | 0);
  }
  return w;
}

/** schedule(lower, upper, to): the message words of a block, eight words at each address in the machine's order. */
function scheduleFunction(): Uint8Array {
  const [lower, upper, to, w] = [0, 1, 2, 3];
  return functionBody(
    [[16, I32]],
    [
      ...range(16, (i) => [...load(get(i < 8 ? lower : upper), (i & 7) * 4), ...set(w + i)]),
      ...range(64, (i) => [
        ...nextWord(scalar, w, i),
        ...store(get(to), i * 4, scalar.add(get(w + (i & 15)), i32(K[i]!))),
      ]),
    ],
  );
}

/** compress(state, words): eight words of state, and what `schedule` wrote. */
function compressFunction(): Uint8Array {
  const [state, words, s, t] = [0, 1, 2, 10];
  return functionBody(
    [[9, I32]],
    [
      ...range(8, (i) => [...load(get(state), i * 4), ...set(s + i)]),
      ...rounds(scalar, s, t, { at: words }),
      ...range(8, (i) => store(get(state), i * 4, [...load(get(state), i * 4), ...get(s + i), ADD])),
    ],
  );
}

/** parents(layer, from, to, n, table): see docs/protocol/proofs.md, "Labels". */
function parentsFunction(): Uint8Array {
  const [layer, i, to, n, table, bits, mixed, distance] = [0, 1, 2, 3, 4, 5, 6, 7];
  /** splitmix64 of (layer, label, salt). */
  const mix = (salt: number): Code => [
    ...[...get(i), 0xad, ...get(layer), 0xad, ...i64(40n), 0x86, 0x84],
    ...[...i64(BigInt(salt) << 48n), 0x84, ...i64(1n), 0x7c, ...i64(0x9e3779b97f4a7c15n), 0x7e, ...tee(mixed)],
    ...[...get(mixed), ...i64(30n), 0x88, 0x85, ...i64(0xbf58476d1ce4e5b9n), 0x7e, ...tee(mixed)],
    ...[...get(mixed), ...i64(27n), 0x88, 0x85, ...i64(0x94d049bb133111ebn), 0x7e, ...tee(mixed)],
    ...[...get(mixed), ...i64(31n), 0x88, 0x85, ...set(mixed)],
  ];
  const highHalf: Code = [...get(mixed), ...i64(32n), 0x88];
  return functionBody(
    [
      [1, I32],
      [2, I64],
    ],
    [
      ...[0x02, 0x40, 0x03, 0x40, ...get(i), ...get(to), 0x4f, 0x0d, 1],
      // One at a distance that is spread evenly over the powers of two.
      ...[...get(i), 0x04, 0x40],
      ...mix(0),
      ...[...i32(32), ...get(i), 0x67, SUB, ...set(bits)],
      ...[...i64(1n), ...get(mixed), ...i64(0xffffffffn), 0x83, ...get(bits), 0xad, 0x82, 0x86, ...set(distance)],
      ...[...get(distance), ...highHalf, ...get(distance), 0x82, 0x7c, ...set(distance)],
      ...[...get(distance), ...get(i), 0xad, 0x56, 0x04, 0x40],
      ...[...i64(1n), ...highHalf, ...get(i), 0xad, 0x82, 0x7c, ...set(distance), 0x0b],
      ...[...store(get(table), 0, [...get(i), ...get(distance), 0xa7, SUB]), 0x0b],
      // One label of the layer below, anywhere.
      ...[...get(layer), ...i32(1), 0x4b, 0x04, 0x40],
      ...mix(1),
      ...[...store(get(table), 4, [...get(mixed), ...get(n), 0xad, 0x82, 0xa7]), 0x0b],
      ...[...get(table), ...i32(8), ADD, ...set(table)],
      ...[...get(i), ...i32(1), ADD, ...set(i), 0x0c, 0, 0x0b, 0x0b],
    ],
  );
}

/** labels(layer, from, to, iterations, current, table): see docs/protocol/proofs.md, "Labels". */
function labelsFunction(schedule: number, compress: number): Uint8Array {
  const [layer, i, to, iterations, label, table, before, step] = [0, 1, 2, 3, 4, 5, 6, 7];
  return functionBody(
    [[2, I32]],
    [
      ...[0x02, 0x40, 0x03, 0x40, ...get(i), ...get(to), 0x4f, 0x0d, 1],
      ...[...get(label), ...i32(32), SUB, ...set(before)],
      ...range(8, (word) => store(get(label), word * 4, load(i32(LABEL_IV), word * 4))),
      ...store(get(label), 0, [...load(get(label), 0), ...get(i), XOR]),
      ...store(get(label), 4, [...load(get(label), 4), ...get(layer), XOR]),
      ...[...get(before), ...load(get(table), 0), ...i32(SCHEDULES), 0x10, schedule],
      ...[...load(get(table), 4), ...get(before), ...i32(SCHEDULES + 256), 0x10, schedule],
      ...[...i32(0), ...set(step), 0x03, 0x40],
      ...[...get(label), ...i32(SCHEDULES), ...get(step), ...i32(1), AND, ...i32(8), SHL, ADD, 0x10, compress],
      ...[...get(step), ...i32(1), ADD, ...tee(step), ...get(iterations), 0x49, 0x0d, 0, 0x0b],
      ...[...get(label), ...i32(32), ADD, ...set(label), ...get(table), ...i32(8), ADD, ...set(table)],
      ...[...get(i), ...i32(1), ADD, ...set(i), 0x0c, 0, 0x0b, 0x0b],
    ],
  );
}

/** pairs(from, to, count): each message is one block and the constant block of padding. */
function pairsFunction(): Uint8Array {
  const [from, to, count, w, s, t, middle] = [0, 1, 2, 3, 19, 27, 28];
  const swapped = (value: Code): Code => [
    ...[...value, ...tee(t), ...i32(8), ROTL, ...i32(0x00ff00ff), AND],
    ...[...get(t), ...i32(8), ROTR, ...i32(0xff00ff00), AND, OR],
  ];
  const padding = [0x80000000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 512];
  return functionBody(
    [[33, I32]],
    [
      ...[0x02, 0x40, 0x03, 0x40, ...get(count), 0x45, 0x0d, 1],
      ...range(16, (i) => [...swapped(load(get(from), i * 4)), ...set(w + i)]),
      ...range(8, (i) => [...i32(IV[i]!), ...set(s + i)]),
      ...rounds(scalar, s, t, { w }),
      ...range(8, (i) => [...get(s + i), ...i32(IV[i]!), ADD, ...tee(s + i), ...set(middle + i)]),
      ...rounds(scalar, s, t, { words: padding }),
      ...range(8, (i) => store(get(to), i * 4, swapped([...get(s + i), ...get(middle + i), ADD]))),
      ...[...get(from), ...i32(64), ADD, ...set(from), ...get(to), ...i32(32), ADD, ...set(to)],
      ...[...get(count), ...i32(1), SUB, ...set(count), 0x0c, 0, 0x0b, 0x0b],
    ],
  );
}

/** search(high, low, count, mask): four nonces at once. */
function searchFunction(): Uint8Array {
  const [high, low, count, mask, tried, w, s, t] = [0, 1, 2, 3, 4, 5, 21, 29];
  const mid = (i: number): Code => [...load(i32(MIDSTATE), i * 4), ...SPLAT];
  const ramp = [...simd(0x0c), ...[0, 1, 2, 3].flatMap((lane) => [lane, 0, 0, 0])];
  return functionBody(
    [
      [1, I32],
      [25, V128],
    ],
    [
      ...[0x02, 0x40, 0x03, 0x40, ...get(tried), ...get(count), 0x4f, 0x0d, 1],
      ...[...get(high), ...SPLAT, ...set(w)],
      ...lanes.add([...get(low), ...get(tried), ADD, ...SPLAT], ramp),
      ...set(w + 1),
      ...range(14, (i) => [...lanes.constant(i === 0 ? 0x80000000 : i === 13 ? 576 : 0), ...set(w + 2 + i)]),
      ...range(8, (i) => [...mid(i), ...set(s + i)]),
      ...rounds(lanes, s, t, { w }),
      ...[...lanes.add(get(s), mid(0)), ...get(mask), ...SPLAT, ...simd(0x4e)],
      ...[...lanes.constant(0), ...simd(0x37), ...set(t)],
      ...[...get(t), ...simd(0x53), 0x04, 0x40],
      ...[...get(tried), ...get(t), ...simd(0xa4), 0x68, ADD, 0x0f, 0x0b],
      ...[...get(tried), ...i32(4), ADD, ...set(tried), 0x0c, 0, 0x0b, 0x0b, ...i32(-1)],
    ],
  );
}

/** Imports `env.memory`; exports `search`, `parents`, `labels`, `pairs`. */
function kernelModule(): Uint8Array {
  const type = (parameters: number, result: number | undefined): Code => [
    0x60,
    ...[parameters, ...Array<number>(parameters).fill(I32)],
    ...(result === undefined ? [0] : [1, result]),
  ];
  const types = [type(3, undefined), type(2, undefined), type(5, undefined), type(6, undefined), type(4, I32)];
  const functions: readonly { readonly name?: string; readonly type: number; readonly body: Uint8Array }[] = [
    { type: 0, body: scheduleFunction() },
    { type: 1, body: compressFunction() },
    { name: 'parents', type: 2, body: parentsFunction() },
    { name: 'labels', type: 3, body: labelsFunction(0, 1) },
    { name: 'pairs', type: 0, body: pairsFunction() },
    { name: 'search', type: 4, body: searchFunction() },
  ];
  const exported = functions.flatMap(({ name }, index) => (name === undefined ? [] : [[...text(name), 0, index]]));
  const bodies = functions.flatMap(({ body }) => [Uint8Array.from(unsigned(body.length)), body]);
  const size = bodies.reduce((sum, part) => sum + part.length, unsigned(functions.length).length);
  const before = Uint8Array.from([
    ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, vector(types)),
    // Any memory with at least two pages; the maximum must be declared by the importer only.
    ...section(2, vector([[...text('env'), ...text('memory'), 2, 0, 2]])),
    ...section(3, vector(functions.map(({ type: index }) => [index]))),
    ...section(7, vector(exported)),
    ...[10, ...unsigned(size), ...unsigned(functions.length)],
  ]);
  return concat(before, ...bodies);
}

function range(count: number, each: (i: number) => Code): Code {
  const out: number[] = [];
  for (let i = 0; i < count; i++) for (const part of each(i)) out.push(part);
  return out;
}

/** As bytes: a list takes eight times the memory, and a worker keeps for long what it has no use for. */
function functionBody(locals: readonly (readonly [count: number, type: number])[], code: Code): Uint8Array {
  const before = vector(locals.map(([count, type]) => op(...unsigned(count), type)));
  const body = new Uint8Array(before.length + code.length + 1);
  body.set(before);
  body.set(code, before.length);
  body[body.length - 1] = 0x0b;
  return body;
}

function section(id: number, content: Code): Code {
  return [id, ...unsigned(content.length), ...content];
}

function vector(items: readonly Code[]): Code {
  return [...unsigned(items.length), ...items.flat()];
}

function text(value: string): Code {
  return [value.length, ...[...value].map((letter) => letter.charCodeAt(0))];
}

/** LEB128. */
function unsigned(value: number): number[] {
  const out: number[] = [];
  for (let rest = value; ; rest >>>= 7) {
    if (rest < 128) return [...out, rest];
    out.push((rest & 127) | 128);
  }
}

function signed(value: bigint): number[] {
  const out: number[] = [];
  for (let rest = value; ; rest >>= 7n) {
    const byte = Number(rest & 127n);
    const done = (rest >> 7n === 0n && (byte & 64) === 0) || (rest >> 7n === -1n && (byte & 64) !== 0);
    if (done) return [...out, byte];
    out.push(byte | 128);
  }
}
