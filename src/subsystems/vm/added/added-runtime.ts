import { chmod, mkdir } from 'node:fs/promises';
import type { CallOptions } from '../../../base/call.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import { UNFINISHED } from '../process/trees.ts';
import { packImage } from './image-package.ts';
import {
  type AddedImage,
  addImage,
  findImage,
  isIntact,
  type ProvisionOptions,
  type Recipe,
  removeImage,
} from './provision.ts';

/** The image of a language, or of the emulator of machines, which the owner of the node may add and take away while programs run. */
export class AddedRuntime {
  readonly #recipe: Recipe;
  readonly #folder: string;
  readonly #changed: () => void;
  readonly #users = new Set<Promise<unknown>>();
  #checked: Promise<AddedImage | 'damaged' | null> | undefined;
  /** Changes follow each other; who runs programs waits for those that remove. */
  #changing: Promise<unknown> = Promise.resolve();
  #removing: Promise<unknown> = Promise.resolve();

  /** `folder`: where images lie, inside the folder of the sandbox. `changed`: called after each change. */
  constructor(recipe: Recipe, folder: string, changed: () => void) {
    this.#recipe = recipe;
    this.#folder = folder;
    this.#changed = changed;
  }

  /** What is there when nothing is being removed, read and compared with its digest once. Errors: `runtime-unavailable` when it is damaged. */
  async installed(): Promise<AddedImage | null> {
    for (;;) {
      const removing = this.#removing;
      await removing;
      this.#checked ??= this.#check().catch((error: unknown) => {
        this.#checked = undefined;
        throw error;
      });
      const checked = await this.#checked;
      if (removing !== this.#removing) continue;
      if (checked === 'damaged') throw this.#damaged();
      return checked;
    }
  }

  /** Works with what is there, which nobody takes away meanwhile. */
  async use<T>(work: (image: AddedImage | null) => Promise<T>): Promise<T> {
    const image = await this.installed();
    const using = work(image);
    this.#users.add(using);
    return using.finally(() => this.#users.delete(using));
  }

  /** Adds it to this node ({@link addImage}), from packages of the distribution or of the catalog; a damaged one is made anew. One change at a time. */
  async add(options: ProvisionOptions = {}): Promise<void> {
    await this.#change(async () => {
      await mkdir(this.#folder, { recursive: true });
      // The users of boxes walk through.
      await chmod(this.#folder, 0o711);
      if ((await this.#check()) === 'damaged') {
        this.#checked = undefined;
        await Promise.allSettled(this.#users);
        await removeImage(this.#folder, this.#recipe.runtime);
      }
      await addImage(this.#folder, this.#recipe, options);
    });
  }

  /** The image as the tree of a package ({@link packImage}), in which `program` starts. `missing` says that there is none. */
  async *export(program: string, missing: () => Error, options: CallOptions = {}): AsyncIterable<Uint8Array> {
    const image = await this.installed();
    if (image === null) throw missing();
    const reading = Promise.withResolvers<void>();
    this.#users.add(reading.promise);
    try {
      yield* packImage(image, { ...options, program, work: this.#folder, prefix: UNFINISHED });
    } finally {
      this.#users.delete(reading.promise);
      reading.resolve();
    }
  }

  /** Takes it from this node when those who use it are done, and `last` too; new ones are refused from now on. Whether it was there. */
  async remove(last: () => Promise<void> = async () => {}): Promise<boolean> {
    const removed = this.#change(async () => {
      await Promise.allSettled(this.#users);
      await last();
      return removeImage(this.#folder, this.#recipe.runtime);
    });
    this.#removing = removed.catch(() => {});
    return removed;
  }

  async #check(): Promise<AddedImage | 'damaged' | null> {
    try {
      const image = await findImage(this.#folder, this.#recipe.runtime);
      return image === null || (await isIntact(image)) ? image : 'damaged';
    } catch (error) {
      if (isCoded(error, 'config-invalid') || (error as NodeJS.ErrnoException).code === 'ENOENT') return 'damaged';
      throw error;
    }
  }

  #damaged(): HyperMeshError {
    const { runtime, title } = this.#recipe;
    const again = `\`hypermesh runtime add ${runtime}\` makes it anew.`;
    return new HyperMeshError(
      'runtime-unavailable',
      `The image of ${title} on this node is damaged: its files are not those of its digest. ${again}`,
    );
  }

  #change<T>(work: () => Promise<T>): Promise<T> {
    const changed = this.#changing.then(work).finally(() => {
      this.#checked = undefined;
      this.#changed();
    });
    this.#changing = changed.catch(() => {});
    return changed;
  }
}
