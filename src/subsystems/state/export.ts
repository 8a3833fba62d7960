import { createReadStream } from 'node:fs';
import { type FileHandle, mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { CallOptions } from '../../base/call.ts';
import type { Clock } from '../../base/clock.ts';
import { HyperMeshError, isCoded, storageError } from '../../base/errors.ts';
import type { StagedSection, StateSection } from '../../capabilities/state.ts';
import {
  decodeStateExport,
  STATE_EXPORT_LIMITS,
  StateExportEncoder,
  type StateExportItem,
  type StateExportManifest,
  type StateExportMeta,
  sectionDigest,
  tooNew,
} from '../../wire/state-export.ts';

/**
 * Export of all sections into one stream, and import from it.
 *
 * An import survives a crash at any line because it can be done again:
 *
 *   incoming.hmstate   the stream as it arrives, being verified      crash: dropped at the next start, nothing happened
 *   sections stage     each reads its pieces into a copy of its own  crash: as above; a section drops its copy when it opens
 *   pending.hmstate    incoming, renamed: the commit point           crash: the next start stages and commits all sections again
 *   sections commit    one after the other                           crash: as above; importing twice leaves the same state
 *   pending removed                                                  done
 */
const INCOMING = 'incoming.hmstate';
const PENDING = 'pending.hmstate';

const IMPORT_SIZE_MAX = 64 * 2 ** 30;

export interface ImportReport {
  readonly header: StateExportMeta;
  readonly sections: readonly {
    readonly name: string;
    readonly version: number;
    readonly bytes: number;
    readonly digest: string;
  }[];
  readonly bytes: number;
  readonly importedAtMs: number;
}

export interface ImportOptions extends CallOptions {
  /** Where the stream is staged: a folder of the import's own on the disk of the home; made if need be. */
  readonly directory: string;
  readonly clock: Clock;
  /** Refuse with `limit-exceeded` past this many bytes; 64 GiB by default. */
  readonly sizeMax?: number;
}

/**
 * Streams `sections` in order, each a consistent snapshot of its own time; memory is bounded by one piece.
 * Keep writers out meanwhile if the sections must agree with each other. Errors: those of the sections, `cancelled`.
 */
export async function* exportState(
  sections: readonly StateSection[],
  meta: StateExportMeta,
  options: CallOptions = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  const { signal, onProgress } = options;
  const encoder = new StateExportEncoder();
  yield encoder.start(meta);
  let done = 0;
  for (const section of sections) {
    yield encoder.section(section.name, section.version);
    for await (const piece of section.export({ signal })) {
      throwIfAborted(signal);
      for (let at = 0; at < piece.length; at += STATE_EXPORT_LIMITS.pieceBytesMax) {
        yield encoder.piece(piece.subarray(at, at + STATE_EXPORT_LIMITS.pieceBytesMax));
      }
      done += piece.length;
      onProgress?.({ step: 'export', done, unit: 'bytes', note: section.name });
    }
  }
  yield encoder.end();
}

/**
 * Replaces the sections that the stream holds; others are left as they are. The whole stream is staged on disk and verified (every digest,
 * every version known) before any section reads a byte, and no section changes before all of them have staged their part.
 * Keep writers out of the sections meanwhile. When it returns, everything is imported and durable.
 * Errors: `state-invalid`, `state-too-new`, `limit-exceeded`, `state-conflict` (another import is under way), `storage-*`, `cancelled`;
 * when it fails after the commit point, the next start finishes the import.
 */
export async function importState(
  stream: AsyncIterable<Uint8Array>,
  sections: readonly StateSection[],
  options: ImportOptions,
): Promise<ImportReport> {
  const incoming = join(options.directory, INCOMING);
  const pending = join(options.directory, PENDING);
  await mkdir(options.directory, { recursive: true }).catch(storageFailure);
  await refuseSecondImport(incoming, pending);
  // `wx`: two imports cannot share the file, whatever the check above saw.
  const file = await open(incoming, 'wx', 0o600).catch(storageFailure);
  let staged: Staged | undefined;
  try {
    await receive(stream, sections, file, options);
    staged = await stageAll(incoming, sections, options);
    throwIfAborted(options.signal);
    // The commit point: before the rename nothing happened, after it the import will be finished by this call or by the next start.
    await rename(incoming, pending).catch(storageFailure);
  } catch (error) {
    if (staged !== undefined) await abandon(staged.parts);
    await rm(incoming, { force: true });
    throw error;
  }
  return finish(staged, pending, options);
}

/**
 * To be called once at every start, after the sections were opened and before anything else uses them:
 * drops an import that never reached its commit point, finishes one that did. Null when there was nothing to finish.
 */
export async function recoverImport(
  sections: readonly StateSection[],
  options: ImportOptions,
): Promise<ImportReport | null> {
  const pending = join(options.directory, PENDING);
  await rm(join(options.directory, INCOMING), { force: true }).catch(storageFailure);
  if (!(await exists(pending))) return null;
  await verify(createReadStream(pending), sections, options);
  return finish(await stageAll(pending, sections, options), pending, options);
}

interface Staged {
  readonly header: StateExportMeta;
  readonly manifest: StateExportManifest;
  readonly parts: readonly StagedSection[];
}

async function receive(
  stream: AsyncIterable<Uint8Array>,
  sections: readonly StateSection[],
  file: FileHandle,
  options: ImportOptions,
): Promise<void> {
  try {
    await verify(tee(stream, file, options.signal), sections, options);
    await file.sync();
  } catch (error) {
    throw isCoded(error) ? error : storageError(error, 'staging a state export');
  } finally {
    await file.close();
  }
}

async function* tee(
  stream: AsyncIterable<Uint8Array>,
  file: FileHandle,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void, undefined> {
  for await (const bytes of stream) {
    throwIfAborted(signal);
    for (let at = 0; at < bytes.length; ) at += (await file.write(bytes.subarray(at))).bytesWritten;
    yield bytes;
  }
}

/** Reads all of it; touches nothing. */
async function verify(
  source: AsyncIterable<Uint8Array>,
  sections: readonly StateSection[],
  { sizeMax = IMPORT_SIZE_MAX, onProgress }: ImportOptions,
): Promise<void> {
  let done = 0;
  for await (const item of decodeStateExport(source, { sizeMax })) {
    if (item.kind === 'section') sectionFor(item, sections);
    if (item.kind !== 'piece') continue;
    done += item.bytes.length;
    onProgress?.({ step: 'verify', done, unit: 'bytes' });
  }
}

function sectionFor(item: { name: string; version: number }, sections: readonly StateSection[]): StateSection {
  const section = sections.find(({ name }) => name === item.name);
  if (section === undefined) throw tooNew(`a section "${item.name}" that nothing here keeps`);
  if (item.version > section.version) throw tooNew(`section "${item.name}" version ${item.version}`, section.version);
  return section;
}

/** Lets each section read its pieces into its staged copy. On any failure all copies are dropped. */
async function stageAll(path: string, sections: readonly StateSection[], options: ImportOptions): Promise<Staged> {
  const { signal, onProgress } = options;
  const parts: StagedSection[] = [];
  const items = new Lookahead(decodeStateExport(createReadStream(path)));
  try {
    const header = await items.take('header');
    while ((await items.peek())?.kind === 'section') {
      const item = await items.take('section');
      onProgress?.({ step: 'stage', done: parts.length, unit: 'steps', note: item.name });
      const pieces = piecesOf(items);
      parts.push(await sectionFor(item, sections).import(item.version, pieces, { signal }));
      // A section that stopped early leaves pieces behind: they were verified, and skipped is what it asked for.
      for await (const _ of pieces) throwIfAborted(signal);
    }
    const { manifest } = await items.take('manifest');
    return { header: header.header, manifest, parts };
  } catch (error) {
    await abandon(parts);
    throw isCoded(error) ? error : storageError(error, 'staging the sections of a state export');
  } finally {
    await items.close();
  }
}

async function finish(staged: Staged, pending: string, options: ImportOptions): Promise<ImportReport> {
  try {
    await syncFolder(options.directory);
    for (const part of staged.parts) await part.commit();
    await rm(pending);
    await syncFolder(options.directory);
  } catch (error) {
    const { code, message } = isCoded(error) ? error : storageError(error, 'committing an import');
    throw new HyperMeshError(code, message, {
      hint: 'The import is complete on disk; restart the node and it will be finished.',
      cause: error,
    });
  }
  const { header, manifest } = staged;
  return {
    header,
    sections: manifest.sections.map((section) => ({
      name: section.name,
      version: section.version,
      bytes: section.bytes,
      digest: sectionDigest(section),
    })),
    bytes: manifest.bytes,
    importedAtMs: options.clock.nowMs(),
  };
}

async function abandon(parts: readonly StagedSection[]): Promise<void> {
  // A copy that cannot be dropped now is dropped when its section opens next; the first error is the one to report.
  await Promise.allSettled(parts.map((part) => part.abandon()));
}

/** The items of an export with one of them in hand. */
class Lookahead {
  readonly #items: AsyncGenerator<StateExportItem, void, undefined>;
  #next: Promise<IteratorResult<StateExportItem, void>> | undefined;

  constructor(items: AsyncGenerator<StateExportItem, void, undefined>) {
    this.#items = items;
  }

  async peek(): Promise<StateExportItem | undefined> {
    this.#next ??= this.#items.next();
    return (await this.#next).value ?? undefined;
  }

  async take<K extends StateExportItem['kind']>(kind: K): Promise<Extract<StateExportItem, { kind: K }>> {
    const item = await this.peek();
    if (item?.kind !== kind) {
      throw new HyperMeshError('state-invalid', `The staged export changed on disk: expected a ${kind} there.`);
    }
    this.#next = undefined;
    return item as Extract<StateExportItem, { kind: K }>;
  }

  async close(): Promise<void> {
    await this.#items.return();
  }
}

/** May be iterated again: it goes on where it stopped, up to the next section. */
function piecesOf(items: Lookahead): AsyncIterable<Uint8Array> {
  return {
    async *[Symbol.asyncIterator]() {
      while ((await items.peek())?.kind === 'piece') yield (await items.take('piece')).bytes;
    },
  };
}

async function refuseSecondImport(incoming: string, pending: string): Promise<void> {
  if (!(await exists(incoming)) && !(await exists(pending))) return;
  throw new HyperMeshError('state-conflict', 'Another import is under way, or one waits to be finished.', {
    hint: 'Wait for it; if it was interrupted, restart the node and try again.',
  });
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return false;
      throw storageError(error, `looking for ${path}`);
    },
  );
}

async function syncFolder(directory: string): Promise<void> {
  try {
    await using folder = await open(directory, 'r');
    await folder.sync();
  } catch (error) {
    throw storageError(error, `syncing the folder ${directory}`);
  }
}

function storageFailure(error: unknown): never {
  throw storageError(error, 'staging a state export');
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new HyperMeshError('cancelled', 'The caller gave up before the end.');
}
