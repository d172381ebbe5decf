// Example inputs of each task; the first is its placeholder. tests/serving/test_page_examples.py checks that ``mini`` gets all of them right.
// ``image``: an example image.

export const EXAMPLES = {
  "draw": [
    {"prompt": "a yellow bus above a green car"},
    {"prompt": "two red apples"},
    {"prompt": "a pink elephant on a sky background"},
    {"prompt": "a purple umbrella right of a dog"},
    {"prompt": "two blue cars on a sand background"}
  ],
  "ask": [
    {"prompt": "what colour is the car?", "image": "street"},
    {"prompt": "how many cups are there?", "image": "cups"},
    {"prompt": "where is the dog?", "image": "animals"},
    {"prompt": "is there a cat?", "image": "cups"},
    {"prompt": "what is above the dog?", "image": "animals"}
  ],
  "ground": [
    {"prompt": "the dog\nthe umbrella", "image": "animals"},
    {"prompt": "the cat\nthe leftmost cup", "image": "cups"},
    {"prompt": "the bicycle", "image": "street"}
  ],
  "edit": [
    {"prompt": "make the background sand", "image": "street"},
    {"prompt": "remove the cat", "image": "cups"},
    {"prompt": "make the car green", "image": "street"},
    {"prompt": "add a dog at the bottom right", "image": "street"}
  ],
  "chat": [
    {"prompt": "draw a red apple"},
    {"prompt": "what colour is the apple?"},
    {"prompt": "make the background sky"},
    {"prompt": "add a cat at the bottom left"}
  ]
};
