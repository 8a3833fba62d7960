import { concat, equal, fromUtf8, utf8 } from './bytes.ts';

/**
 * DER (ITU-T X.690), the part that certificates are made of. Reading cuts slices and copies nothing; every value has one accepted
 * encoding: lengths and numbers in their shortest form, `TRUE` as ff, unused bits zero.
 */

/** The bytes are not what was expected. The message is a sentence, and never quotes the bytes. */
export class DerError extends Error {
  override readonly name = 'DerError';
}

export const TAG = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  oid: 0x06,
  enumerated: 0x0a,
  utf8String: 0x0c,
  printableString: 0x13,
  ia5String: 0x16,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  set: 0x31,
} as const;

/** Longer identifiers are not read: the arcs are numbers of any size, and such a number costs time. */
const OID_BYTES_MAX = 64;

/** Context-specific tag of a constructed value. */
export function explicit(number: number): number {
  return 0xa0 | number;
}

// --- reading

export class DerValue {
  readonly tag: number;
  readonly #bytes: Uint8Array;
  /** Offsets of the header, of the content, and past it. */
  readonly #from: number;
  readonly #start: number;
  readonly #end: number;

  private constructor(bytes: Uint8Array, from: number, limit: number) {
    const tag = bytes[from];
    const first = bytes[from + 1];
    if (from + 2 > limit || tag === undefined || first === undefined || (tag & 0x1f) === 0x1f) {
      throw new DerError('A value is cut off.');
    }
    let start = from + 2;
    let length = first;
    if (first >= 0x80) {
      const octets = first & 0x7f;
      if (octets === 0 || octets > 3 || start + octets > limit) throw new DerError('A length is not in DER.');
      length = 0;
      for (const end = start + octets; start < end; start++) length = length * 256 + bytes[start]!;
      if (length < 0x80 || length < 256 ** (octets - 1)) throw new DerError('A length is not in its shortest form.');
    }
    if (start + length > limit) throw new DerError('A value is longer than what contains it.');
    this.tag = tag;
    this.#bytes = bytes;
    this.#from = from;
    this.#start = start;
    this.#end = start + length;
  }

  /** The bytes are exactly one value, of that tag. */
  static read(bytes: Uint8Array, tag: number): DerValue {
    const value = new DerValue(bytes, 0, bytes.length);
    if (value.#end !== bytes.length) throw new DerError('Something follows the value.');
    return value.expect(tag);
  }

  /** Header and content. */
  get whole(): Uint8Array {
    return this.#bytes.subarray(this.#from, this.#end);
  }

  get content(): Uint8Array {
    return this.#bytes.subarray(this.#start, this.#end);
  }

  expect(tag: number): this {
    if (this.tag !== tag) throw new DerError('A value has the wrong type.');
    return this;
  }

  /** The values in it, one after the other to its end. */
  children(): DerValue[] {
    const found: DerValue[] = [];
    for (let at = this.#start; at < this.#end; ) {
      const child = new DerValue(this.#bytes, at, this.#end);
      found.push(child);
      at = child.#end;
    }
    return found;
  }

  /** The only value in it. */
  only(tag: number): DerValue {
    const [child, ...more] = this.children();
    if (child === undefined || more.length > 0) throw new DerError('Exactly one value was expected inside another.');
    return child.expect(tag);
  }

  /** `TRUE`; `FALSE` is the default wherever it could occur here, and DER leaves defaults out. */
  expectTrue(): void {
    const { content } = this.expect(TAG.boolean);
    if (content.length !== 1 || content[0] !== 0xff) throw new DerError('A truth value is not in DER.');
  }

  /** Content of an INTEGER that is not negative. */
  natural(): Uint8Array {
    const { content } = this.expect(TAG.integer);
    const [first, second] = content;
    if (first === undefined || first >= 0x80) throw new DerError('A number is missing or negative.');
    if (first === 0 && second !== undefined && second < 0x80)
      throw new DerError('A number is not in its shortest form.');
    return content;
  }

  /** The same for one below 2^48. */
  count(): number {
    const digits = this.natural();
    if (digits.length > 6) throw new DerError('A number is too large.');
    return digits.reduce((sum, byte) => sum * 256 + byte, 0);
  }

  /** A BIT STRING of whole bytes. */
  wholeBits(): Uint8Array {
    const { content } = this.expect(TAG.bitString);
    if (content[0] !== 0) throw new DerError('A bit string of whole bytes was expected.');
    return content.subarray(1);
  }

  /** Numbers of the bits that are set in a list of named bits. */
  namedBits(): ReadonlySet<number> {
    const [unused, ...bytes] = this.expect(TAG.bitString).content;
    const last = bytes.at(-1);
    // Zeros at the end are cut off, so the lowest bit that is used is set.
    if (unused === undefined || unused > 7 || (last === undefined ? unused !== 0 : (last & -last) !== 1 << unused)) {
      throw new DerError('A list of bits is not in DER.');
    }
    const set = new Set<number>();
    for (let bit = 0; bit < bytes.length * 8; bit++) if ((bytes[bit >> 3]! << (bit & 7)) & 0x80) set.add(bit);
    return set;
  }

  /** An object identifier in its dotted form. */
  oid(): string {
    const { content } = this.expect(TAG.oid);
    if (content.length === 0 || content.length > OID_BYTES_MAX || content.at(-1)! >= 0x80)
      throw new DerError('An object identifier is cut off, or too long.');
    const arcs: bigint[] = [];
    let arc = 0n;
    let fresh = true;
    for (const byte of content) {
      if (fresh && byte === 0x80) throw new DerError('An object identifier is not in its shortest form.');
      arc = arc * 128n + BigInt(byte & 0x7f);
      fresh = byte < 0x80;
      if (!fresh) continue;
      if (arcs.length === 0) {
        const top = arc < 80n ? arc / 40n : 2n;
        arcs.push(top, arc - top * 40n);
      } else {
        arcs.push(arc);
      }
      arc = 0n;
    }
    return arcs.join('.');
  }

  /** UTF8String, PrintableString or IA5String. */
  text(): string {
    const { tag, content } = this;
    if (tag !== TAG.utf8String && tag !== TAG.printableString && tag !== TAG.ia5String)
      throw new DerError('A name is written in an alphabet that is not accepted.');
    if (tag !== TAG.utf8String && content.some((byte) => byte >= 0x80))
      throw new DerError('A name in ASCII has other characters.');
    try {
      return fromUtf8(content);
    } catch (error) {
      throw new DerError('A name is not UTF-8.', { cause: error });
    }
  }

  /** UTCTime up to the year 2049 and GeneralizedTime after it, to the second and in UTC (RFC 5280, 4.1.2.5). */
  timeMs(): number {
    const { tag, content } = this;
    if (tag !== TAG.utcTime && tag !== TAG.generalizedTime) throw new DerError('A time was expected.');
    const text = String.fromCharCode(...content.subarray(0, 16));
    const digits = tag === TAG.utcTime ? /^\d{12}Z$/ : /^\d{14}Z$/;
    if (!digits.test(text)) throw new DerError('A time is not in DER.');
    const full = tag === TAG.utcTime ? `${text < '5' ? '20' : '19'}${text}` : text;
    const [year, month, ...rest] = full.match(/^\d{4}|\d{2}/g)!.map(Number) as [number, number, ...number[]];
    const ms = Date.UTC(year, month - 1, ...(rest as [number, number, number, number]));
    // A day or an hour that does not exist would come back as another one.
    if (!equal(derTime(ms), this.whole)) throw new DerError('A time does not exist, or is not in DER.');
    return ms;
  }
}

// --- writing

export function der(tag: number, ...content: readonly Uint8Array[]): Uint8Array {
  const length = content.reduce((sum, part) => sum + part.length, 0);
  const octets: number[] = [];
  for (let rest = length; rest > 0; rest = Math.floor(rest / 256)) octets.unshift(rest % 256);
  const header = length < 0x80 ? [tag, length] : [tag, 0x80 | octets.length, ...octets];
  return concat(Uint8Array.from(header), ...content);
}

export function derSequence(...content: readonly Uint8Array[]): Uint8Array {
  return der(TAG.sequence, ...content);
}

/** A whole number from 0 to 2^53 - 1. */
export function derNatural(value: number): Uint8Array {
  const digits: number[] = [];
  for (let rest = value; rest > 0; rest = Math.floor(rest / 256)) digits.unshift(rest % 256);
  if (digits.length === 0 || digits[0]! >= 0x80) digits.unshift(0);
  return der(TAG.integer, Uint8Array.from(digits));
}

/** A BIT STRING of whole bytes. */
export function derBits(bytes: Uint8Array): Uint8Array {
  return der(TAG.bitString, Uint8Array.of(0), bytes);
}

/** An identifier whose first two arcs are below 40. */
export function derOid(text: string): Uint8Array {
  const [top, second, ...rest] = text.split('.').map(BigInt) as [bigint, bigint, ...bigint[]];
  const bytes: number[] = [];
  for (const arc of [top * 40n + second, ...rest]) {
    const septets = [Number(arc & 0x7fn)];
    for (let more = arc >> 7n; more > 0n; more >>= 7n) septets.unshift(Number(more & 0x7fn) | 0x80);
    bytes.push(...septets);
  }
  return der(TAG.oid, Uint8Array.from(bytes));
}

/** Whole seconds count; the rest is cut off. */
export function derTime(ms: number): Uint8Array {
  const text = `${new Date(ms).toISOString().slice(0, 19).replaceAll(/[-:T]/g, '')}Z`;
  const year = Number(text.slice(0, 4));
  return year >= 1950 && year <= 2049 ? der(TAG.utcTime, utf8(text.slice(2))) : der(TAG.generalizedTime, utf8(text));
}
