import { createHash, type Hash } from 'node:crypto';
import { decode, encode } from 'cborg';
import { z } from 'zod';
import { concat, equal, hex } from '../base/bytes.ts';
import { HyperMeshError } from '../base/errors.ts';

/**
 * A state export (docs/protocol/state-export.md): a magic, a version, then frames, each with a digest chained over everything before it.
 * Encoder and decoder hold one frame at a time.
 */

/** Version of the container format. */
export const STATE_EXPORT_VERSION = 1;

export const STATE_EXPORT_LIMITS = {
  sectionsMax: 64,
  pieceBytesMax: 1_048_576,
  /** Header, section and manifest frames. */
  recordBytesMax: 65_536,
} as const;

/** A byte that is not ASCII, a name, and both kinds of line end: a transfer that mangles text shows at once. */
const MAGIC = Uint8Array.of(0x89, 0x48, 0x4d, 0x53, 0x54, 0x0d, 0x0a, 0x1a);
const KIND = { header: 1, section: 2, piece: 3, manifest: 4 } as const;
const DIGEST_BYTES = 32;
const FRAME_HEAD_BYTES = 5;

const sectionName = z.string().regex(/^[a-z][a-z0-9-]{0,63}$/);
const sectionVersion = z.int().min(1).max(1_000_000);
const count = z.int().nonnegative();

const headerSchema = z.strictObject({
  /** Milliseconds since the Unix epoch. */
  createdAtMs: count,
  /** Version of the software that wrote it. */
  software: z.string().min(1).max(64),
  /** The network whose state this is; null for a home that joined none. */
  networkId: z.string().max(128).nullable(),
});
/** Who exported what, when. */
export type StateExportMeta = z.infer<typeof headerSchema>;

const sectionSchema = z.strictObject({ name: sectionName, version: sectionVersion });

const manifestSchema = z.strictObject({
  sections: z
    .array(
      z.strictObject({
        name: sectionName,
        version: sectionVersion,
        pieces: count,
        bytes: count,
        sha256: z.instanceof(Uint8Array).refine((digest) => digest.length === DIGEST_BYTES),
      }),
    )
    .max(STATE_EXPORT_LIMITS.sectionsMax),
  bytes: count,
});
/** One row for each section, in order, with the SHA-256 over its pieces joined; and the bytes of all pieces. */
export type StateExportManifest = z.infer<typeof manifestSchema>;

type ManifestSection = StateExportManifest['sections'][number];

/** What a decoder hands over, in this order: header, then for each section its start and its pieces, then the manifest. */
export type StateExportItem =
  | { readonly kind: 'header'; readonly header: StateExportMeta }
  | { readonly kind: 'section'; readonly name: string; readonly version: number }
  | { readonly kind: 'piece'; readonly bytes: Uint8Array }
  | { readonly kind: 'manifest'; readonly manifest: StateExportManifest };

/** Counts one section while its pieces pass. */
class SectionTally {
  readonly #hash = createHash('sha256');
  #bytes = 0;
  #pieces = 0;
  readonly name: string;
  readonly version: number;

  constructor(name: string, version: number) {
    this.name = name;
    this.version = version;
  }

  add(piece: Uint8Array): void {
    this.#hash.update(piece);
    this.#bytes += piece.length;
    this.#pieces += 1;
  }

  row(): ManifestSection {
    const { name, version } = this;
    const sha256 = new Uint8Array(this.#hash.digest());
    return { name, version, pieces: this.#pieces, bytes: this.#bytes, sha256 };
  }
}

function manifestOf(tallies: readonly SectionTally[]): StateExportManifest {
  const sections = tallies.map((tally) => tally.row());
  return { sections, bytes: sections.reduce((sum, section) => sum + section.bytes, 0) };
}

/** Writes an export piece by piece: each call returns the bytes to append. */
export class StateExportEncoder {
  #chain = createHash('sha256').update(MAGIC).update(Uint8Array.of(STATE_EXPORT_VERSION)).digest();
  readonly #tallies: SectionTally[] = [];

  start(meta: StateExportMeta): Uint8Array {
    return concat(
      MAGIC,
      Uint8Array.of(STATE_EXPORT_VERSION),
      this.#frame(KIND.header, encode(headerSchema.parse(meta))),
    );
  }

  section(name: string, version: number): Uint8Array {
    const record = sectionSchema.parse({ name, version });
    if (this.#tallies.some((tally) => tally.name === name)) throw new TypeError(`section ${name} is there twice`);
    if (this.#tallies.length >= STATE_EXPORT_LIMITS.sectionsMax) throw new TypeError('too many sections');
    this.#tallies.push(new SectionTally(name, version));
    return this.#frame(KIND.section, encode(record));
  }

  /** 1 byte to 1 MiB of the section begun last. */
  piece(bytes: Uint8Array): Uint8Array {
    const tally = this.#tallies.at(-1);
    if (tally === undefined || bytes.length === 0 || bytes.length > STATE_EXPORT_LIMITS.pieceBytesMax) {
      throw new TypeError(`a piece of ${bytes.length} bytes is out of place or out of limits`);
    }
    tally.add(bytes);
    return this.#frame(KIND.piece, bytes);
  }

  end(): Uint8Array {
    return this.#frame(KIND.manifest, encode(manifestOf(this.#tallies)));
  }

  #frame(kind: number, payload: Uint8Array): Uint8Array {
    const head = frameHead(kind, payload.length);
    this.#chain = chainDigest(this.#chain, head, payload);
    return concat(head, payload, this.#chain);
  }
}

/**
 * Reads and checks an export as it arrives. An item is handed over only after its digest held; the whole is good only when the
 * generator ended by itself after the manifest.
 * Errors: `state-invalid`, `state-too-new`, `limit-exceeded` past `sizeMax` bytes.
 */
export async function* decodeStateExport(
  source: AsyncIterable<Uint8Array>,
  options: { readonly sizeMax?: number } = {},
): AsyncGenerator<StateExportItem, void, undefined> {
  const input = new ByteReader(source, options.sizeMax ?? Number.MAX_SAFE_INTEGER);
  try {
    const start = await input.take(MAGIC.length + 1);
    if (!equal(start.subarray(0, MAGIC.length), MAGIC)) throw invalid('it does not start like a state export');
    const version = start[MAGIC.length]!;
    if (version > STATE_EXPORT_VERSION) throw tooNew(`container version ${version}`, STATE_EXPORT_VERSION);
    if (version !== STATE_EXPORT_VERSION) throw invalid(`container version ${version} never existed`);

    let chain: Uint8Array = createHash('sha256').update(start).digest();
    const next = async (): Promise<{ kind: number; payload: Uint8Array }> => {
      const head = await input.take(FRAME_HEAD_BYTES);
      const kind = head[0]!;
      const size = new DataView(head.buffer, head.byteOffset).getUint32(1);
      const sizeMax = kind === KIND.piece ? STATE_EXPORT_LIMITS.pieceBytesMax : STATE_EXPORT_LIMITS.recordBytesMax;
      if (kind < KIND.header || kind > KIND.manifest) throw invalid(`a frame has the unknown kind ${kind}`);
      if (size === 0 || size > sizeMax) throw invalid(`a frame announces ${size} bytes; 1 to ${sizeMax} are allowed`);
      const payload = await input.take(size);
      chain = chainDigest(chain, head, payload);
      if (!equal(chain, await input.take(DIGEST_BYTES))) throw invalid('a frame does not match its digest');
      return { kind, payload };
    };

    const first = await next();
    if (first.kind !== KIND.header) throw invalid('the first frame is not the header');
    yield { kind: 'header', header: readRecord(first.payload, headerSchema, 'header') };

    const tallies: SectionTally[] = [];
    for (;;) {
      const { kind, payload } = await next();
      if (kind === KIND.section) {
        const section = readRecord(payload, sectionSchema, 'section');
        if (tallies.some((tally) => tally.name === section.name))
          throw invalid(`section ${section.name} is there twice`);
        if (tallies.length >= STATE_EXPORT_LIMITS.sectionsMax) throw invalid('it has too many sections');
        tallies.push(new SectionTally(section.name, section.version));
        yield { kind: 'section', ...section };
      } else if (kind === KIND.piece) {
        const tally = tallies.at(-1);
        if (tally === undefined) throw invalid('a piece comes before any section');
        tally.add(payload);
        yield { kind: 'piece', bytes: payload };
      } else if (kind === KIND.manifest) {
        const manifest = readRecord(payload, manifestSchema, 'manifest');
        if (!equal(encode(manifest), encode(manifestOf(tallies)))) throw invalid('the manifest names other content');
        if (!(await input.atEnd())) throw invalid('bytes follow the manifest');
        return yield { kind: 'manifest', manifest };
      } else {
        throw invalid('a second header comes in the middle');
      }
    }
  } finally {
    await input.close();
  }
}

function readRecord<T>(payload: Uint8Array, schema: z.ZodType<T>, what: string): T {
  let value: unknown;
  try {
    value = decode(payload, {
      strict: true,
      rejectDuplicateMapKeys: true,
      allowUndefined: false,
      allowIndefinite: false,
    });
  } catch (error) {
    throw invalid(`the ${what} frame is not deterministic CBOR`, error);
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success)
    throw invalid(`the ${what} frame has a wrong ${parsed.error.issues[0]?.path.join('.') ?? 'form'}`);
  if (!equal(encode(parsed.data), payload)) throw invalid(`the ${what} frame is not deterministic CBOR`);
  return parsed.data;
}

function frameHead(kind: number, size: number): Uint8Array {
  const head = new Uint8Array(FRAME_HEAD_BYTES);
  head[0] = kind;
  new DataView(head.buffer).setUint32(1, size);
  return head;
}

function chainDigest(previous: Uint8Array, head: Uint8Array, payload: Uint8Array): Buffer<ArrayBuffer> {
  const hash: Hash = createHash('sha256');
  return hash.update(previous).update(head).update(payload).digest();
}

function invalid(why: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('state-invalid', `The state export is damaged: ${why}. Nothing was imported.`, {
    hint: 'Fetch or make the export again; compare its size and digest with the original.',
    cause,
  });
}

/** The error for anything written by a newer version: the container, a section, or a section not known here. */
export function tooNew(what: string, known?: number): HyperMeshError {
  const knows = known === undefined ? '' : `; this version of HyperMesh knows up to ${known}`;
  return new HyperMeshError('state-too-new', `The state export has ${what}${knows}. Nothing was imported.`, {
    hint: 'Update HyperMesh, load the extension that owns the section, or export again from the older version.',
  });
}

/** Takes exact runs of bytes from a stream of pieces of any size. */
class ByteReader {
  readonly #source: AsyncIterator<Uint8Array>;
  readonly #sizeMax: number;
  #rest: Uint8Array = new Uint8Array(0);
  #read = 0;

  constructor(source: AsyncIterable<Uint8Array>, sizeMax: number) {
    this.#source = source[Symbol.asyncIterator]();
    this.#sizeMax = sizeMax;
  }

  async take(size: number): Promise<Uint8Array> {
    const out = new Uint8Array(size);
    let filled = 0;
    while (filled < size) {
      if (this.#rest.length === 0 && !(await this.#more())) {
        throw invalid(`it ends after ${this.#read} bytes, in the middle of a frame`);
      }
      const part = this.#rest.subarray(0, size - filled);
      out.set(part, filled);
      filled += part.length;
      this.#rest = this.#rest.subarray(part.length);
    }
    return out;
  }

  async atEnd(): Promise<boolean> {
    return this.#rest.length === 0 && !(await this.#more());
  }

  async #more(): Promise<boolean> {
    for (;;) {
      const { done, value } = await this.#source.next();
      if (done === true) return false;
      if (value.length === 0) continue;
      this.#read += value.length;
      if (this.#read > this.#sizeMax) {
        throw new HyperMeshError('limit-exceeded', `The state export is larger than ${this.#sizeMax} bytes.`);
      }
      this.#rest = value;
      return true;
    }
  }

  async close(): Promise<void> {
    await this.#source.return?.();
  }
}

/** The digest of a section as the manifest carries it, for people. */
export function sectionDigest(section: ManifestSection): string {
  return `sha256:${hex(section.sha256)}`;
}
