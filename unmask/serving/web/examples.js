// Example inputs of each task; the first is its placeholder. tests/serving/test_page_examples.py checks that ``mini`` gets all of them right.
// ``image``: an example image · ``plan``: whether the example turns on planning.

export const EXAMPLES = {
  "draw": [
    {"prompt": "a red car left of a blue cat", "plan": true},
    {"prompt": "three dogs", "plan": true},
    {"prompt": "a red apple and a cat", "plan": true}
  ],
  "ask": [
    {"prompt": "where is the car?", "image": "street"},
    {"prompt": "how many objects are there?", "image": "animals"},
    {"prompt": "is there a cat?", "image": "apples"}
  ],
  "ground": [
    {"prompt": "the dog\nthe umbrella", "image": "animals"},
    {"prompt": "the cat", "image": "apples"},
    {"prompt": "the car", "image": "street"}
  ],
  "edit": [
    {"prompt": "make the background sand", "image": "street"},
    {"prompt": "remove the cat", "image": "apples"},
    {"prompt": "make the car green", "image": "street"}
  ],
  "chat": [
    {"prompt": "draw a red apple"},
    {"prompt": "what colour is the apple?"},
    {"prompt": "make the background sky"},
    {"prompt": "add a cat at the bottom left"}
  ]
};
