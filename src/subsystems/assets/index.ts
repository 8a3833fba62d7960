export type { CacheFigures } from './content/store.ts';
export { type AssetLimits, type AssetStore, openAssets } from './store.ts';
